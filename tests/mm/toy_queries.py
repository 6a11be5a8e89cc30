"""Tiny detectors and segmenters with queries, cut down from the stock configs of both zoos."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

import kd_dense.mm  # noqa: F401  (before any config is read)
from kd_dense.mm.configs import read_config
from tests.mm import toy

STOCK = {
    'detr': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'conditional': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'dab': 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'deformable': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'two-stage': 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'ddq': 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
}
BOXES = [*STOCK]  # they predict boxes
MASKS = {
    'mask2former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'maskformer': 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'seg-mask2former': 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    'seg-maskformer': 'mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
}
NARROW = 32  # in the place of 256
WIDE = ('conditional', 'two-stage')  # encode positions in 256 channels, whatever a config says
# What a config says of sizes and of dropout, and what it says here.
SMALLER = dict(
    embed_dims={256: NARROW},
    out_channels={256: NARROW},
    feat_channels={256: NARROW},
    num_feats={128: NARROW // 2},
    feedforward_channels={1024: NARROW, 2048: NARROW},
    num_groups={32: 4},
    num_dn_queries={100: 6},
    num_classes={80: 3},
    **{key: {0.1: 0.0} for key in ('attn_drop', 'proj_drop', 'ffn_drop', 'dropout')},
)
LAYERS, QUERIES = 2, 7


def _shrunk(value: Any, smaller: Any) -> Any:
    if isinstance(value, dict):
        for key, one in value.items():
            table = smaller.get(key, {}) if isinstance(one, (int, float)) else {}
            value[key] = table.get(one, one) if table else _shrunk(one, smaller)
    elif isinstance(value, (list, tuple)):
        return type(value)(_shrunk(one, smaller) for one in value)
    return value


def model(kind: str, queries: int = QUERIES, layers: int = LAYERS, **others: Any) -> ConfigDict:
    """The config of a tiny model of a kind."""
    classes = dict(num_classes=SMALLER['num_classes'])
    wide = kind in WIDE
    found = _shrunk(read_config(STOCK[kind]).model, classes if wide else SMALLER)
    found._scope_ = 'mmdet'
    # Blocks of two convolutions, so that a stage is as wide as its base.
    base = 8
    found.backbone.update(depth=18, base_channels=base, stem_channels=base, frozen_stages=-1)
    found.backbone.init_cfg = None
    found.neck.in_channels = [base * 2**i for i in found.backbone.out_indices]
    found.bbox_head.embed_dims = 256 if wide else NARROW
    found.num_queries = queries
    for part in (found.encoder, found.decoder):
        part.num_layers = layers
    found.update(others)
    return found


def mask_model(kind: str, queries: int = QUERIES, layers: int = LAYERS) -> ConfigDict:
    """The config of a tiny model that predicts masks: of two things and a stuff, or 5 classes."""
    found = _shrunk(read_config(MASKS[kind]).model, {**SMALLER, 'num_classes': {}})
    segments = kind.startswith('seg')
    found._scope_ = 'mmseg' if segments else 'mmdet'
    found.backbone.update(depth=18, base_channels=8, stem_channels=8, frozen_stages=-1)
    found.backbone.update(init_cfg=None, norm_cfg=dict(type='BN'))
    found.data_preprocessor.pop('batch_augments', None)
    head = found.decode_head if segments else found.panoptic_head
    if segments:
        found.data_preprocessor.size = (64, 64)
        head.num_classes = 5
    else:
        for part in (head, found.panoptic_fusion_head):
            part.update(num_things_classes=2, num_stuff_classes=1)
    head.update(in_channels=[8, 16, 32, 64], num_queries=queries)
    head.loss_cls.class_weight = [1.0] * (5 if segments else 3) + [0.1]
    head.transformer_decoder.num_layers = layers
    if 'encoder' in head.pixel_decoder:
        head.pixel_decoder.encoder.num_layers = 1
    for one in (head.get('train_cfg'), found.get('train_cfg')):
        if one and 'num_points' in one:
            one.num_points = 64
    return found


def distilled(kind: str, loss: Any, tap: Any = None, **others: Any) -> ConfigDict:
    """The config of such a model that learns from another one, with more queries and layers."""
    make, head = (model, 'bbox_head') if kind in BOXES else (mask_model, 'panoptic_head')
    head = 'decode_head' if kind.startswith('seg') else head
    teacher = others.pop('teacher', None) or make(kind, QUERIES + 2, LAYERS + 1)
    guest = toy.build(teacher, seed=1)
    guest.init_weights()  # without it some are not finite
    return toy.distilled(
        others.pop('student', None) or make(kind),
        guest,
        dict(queries=dict(tap=tap or head, loss=loss)),
        **others,
    )
