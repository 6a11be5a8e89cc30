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
NARROW = 32  # in the place of 256
WIDE = ('conditional', 'two-stage')  # encode positions in 256 channels, whatever a config says
# What a config says of sizes, and what it says here.
SMALLER = dict(
    embed_dims={256: NARROW},
    out_channels={256: NARROW},
    feat_channels={256: NARROW},
    num_feats={128: NARROW // 2},
    feedforward_channels={1024: NARROW, 2048: NARROW},
    num_groups={32: 4},
    num_dn_queries={100: 6},
    num_classes={80: 3},
)
LAYERS, QUERIES = 2, 7


def _shrunk(value: Any, smaller: Any) -> Any:
    if isinstance(value, dict):
        for key, one in value.items():
            table = smaller.get(key, {}) if isinstance(one, int) else {}
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


def distilled(kind: str, loss: Any, tap: Any = 'bbox_head', **others: Any) -> ConfigDict:
    """The config of such a model that learns from another one, with more queries and layers."""
    teacher = others.pop('teacher', None) or model(kind, QUERIES + 2, LAYERS + 1)
    guest = toy.build(teacher, seed=1)
    guest.init_weights()  # without it some are not finite
    return toy.distilled(
        others.pop('student', None) or model(kind),
        guest,
        dict(queries=dict(tap=tap, loss=loss)),
        **others,
    )
