"""Tiny detectors with dense heads that predict box distributions."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

from tests.mm import toy

STRIDES = [8, 16, 32, 64, 128]
ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=4,
    scales_per_octave=1,
    strides=STRIDES,
)
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
GIOU = dict(type='GIoULoss', loss_weight=2.0)
HEADS: dict[str, dict[str, Any]] = {
    'gfl': dict(
        type='GFLHead',
        anchor_generator=ANCHORS,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_bbox=GIOU,
    ),
    'atss': dict(
        type='kd_dense.DistributionATSSHead',
        anchor_generator=ANCHORS,
        loss_cls=FOCAL,
        loss_bbox=GIOU,
    ),
    'fcos': dict(
        type='kd_dense.DistributionFCOSHead',
        strides=STRIDES,
        center_sampling=True,
        loss_cls=FOCAL,
        loss_bbox=GIOU,
    ),
    'retina': dict(
        type='kd_dense.DistributionRetinaHead',
        anchor_generator={**ANCHORS, 'ratios': [0.5, 1.0, 2.0], 'scales_per_octave': 2},
        loss_cls=FOCAL,
        loss_bbox=GIOU,
    ),
}
DETECTORS = {'gfl': 'GFL', 'atss': 'ATSS', 'fcos': 'FCOS', 'retina': 'RetinaNet'}
# The region of the head; the rest is in the defaults of LDLoss.
LD = {kind: dict(type='LDLoss') for kind in HEADS} | {'fcos': dict(type='LDLoss', region='inside')}


def detector(kind: str, width: int = 8, **head: Any) -> ConfigDict:
    """The config of a detector with one of the heads; ``head`` changes its fields."""
    config = toy.detector(width)
    config.type = DETECTORS[kind]
    config.bbox_head = dict(
        **HEADS[kind],
        num_classes=3,
        in_channels=2 * width,
        feat_channels=16,
        stacked_convs=1,
        reg_max=8,
        norm_cfg=dict(type='GN', num_groups=2),
    )
    config.bbox_head.update(head)
    if kind in ('gfl', 'atss'):
        config.train_cfg.assigner = dict(type='ATSSAssigner', topk=9)
    return config


# Heads of mmdet without distributions.
PLAIN: dict[str, dict[str, Any]] = {
    'atss': dict(
        type='ATSSHead',
        anchor_generator=dict(ANCHORS, octave_base_scale=8),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=FOCAL,
        loss_bbox=GIOU,
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True),
    ),
    'fcos': dict(
        type='FCOSHead', strides=STRIDES, center_sampling=True, loss_cls=FOCAL, loss_bbox=GIOU
    ),
    'retina': dict(
        type='RetinaHead',
        anchor_generator={**ANCHORS, 'ratios': [0.5, 1.0, 2.0], 'scales_per_octave': 2},
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_bbox=dict(type='L1Loss'),
    ),
    'ddod': dict(
        type='DDODHead',
        anchor_generator=dict(ANCHORS, octave_base_scale=8),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=FOCAL,
        loss_bbox=GIOU,
        loss_iou=dict(type='CrossEntropyLoss', use_sigmoid=True),
    ),
    'autoassign': dict(
        type='AutoAssignHead', strides=STRIDES, loss_bbox=dict(type='GIoULoss', loss_weight=5.0)
    ),
}


def plain(kind: str, width: int = 8, **head: Any) -> ConfigDict:
    """The config of a detector with one of the heads of mmdet; ``head`` changes its fields."""
    config = detector('gfl', width)
    config.type = {**DETECTORS, 'ddod': 'DDOD', 'autoassign': 'AutoAssign'}[kind]
    config.bbox_head = dict(
        num_classes=3,
        in_channels=2 * width,
        feat_channels=16,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=2),
        **PLAIN[kind],
    )
    config.bbox_head.update(head)
    if kind == 'retina':
        config.train_cfg = toy.detector().train_cfg
    if kind == 'ddod':
        config.train_cfg.assigner = dict(type='ATSSAssigner', topk=9, alpha=0.8)
        config.train_cfg.reg_assigner = dict(type='ATSSAssigner', topk=9, alpha=0.5)
    return config


def incremental(old_classes: int, width: int = 8) -> ConfigDict:
    """The config of a detector that learns three classes beside those of its teacher."""
    config = detector('gfl', width, num_classes=old_classes + 3, old_classes=old_classes)
    config.bbox_head.type = 'kd_dense.IncrementalGFLHead'
    return config


def distilled(kind: str, **others: Any) -> ConfigDict:
    """The config of such a detector that learns from a wider one."""
    return toy.distilled(
        **{
            'student': detector(kind),
            'teacher': dict(config=detector(kind, 16), checkpoint=None),
            'terms': dict(ld=dict(tap='bbox_head', loss=LD[kind])),
            **others,
        }
    )
