"""Tiny detectors with region proposals."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

from tests.mm import toy

FC_CLS, FC_REG = 'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'
DKD = dict(type='DKDLoss', beta=0.25)
STDS = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1])  # of the stages of a cascade


def detector(
    width: int = 8, stages: int = 0, masks: bool = False, classes: int = 3, **sampler: Any
) -> ConfigDict:
    """A Faster R-CNN; with masks a Mask R-CNN; with stages a Cascade R-CNN."""
    config = toy.detector(width)
    channels = config.neck.out_channels
    del config.bbox_head
    config.type = 'CascadeRCNN' if stages else 'MaskRCNN' if masks else 'FasterRCNN'
    config.neck.update(start_level=0, num_outs=5, add_extra_convs=False)
    box_loss = dict(type='SmoothL1Loss', beta=1.0)
    config.rpn_head = dict(
        type='RPNHead',
        in_channels=channels,
        feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=box_loss,
    )
    pooled = dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
        out_channels=channels,
        featmap_strides=[4, 8, 16, 32],
    )

    def box_head(stage: int) -> dict[str, Any]:
        return dict(
            type='Shared2FCBBoxHead',
            in_channels=channels,
            fc_out_channels=16,
            roi_feat_size=3,
            num_classes=classes,
            reg_class_agnostic=bool(stages),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=STDS[stage]),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=box_loss,
        )

    config.roi_head = dict(
        type='StandardRoIHead', bbox_roi_extractor=pooled, bbox_head=box_head(0)
    )
    if stages:
        config.roi_head.update(
            type='CascadeRoIHead',
            num_stages=stages,
            stage_loss_weights=[1.0, 0.5][:stages],
            bbox_head=[box_head(stage) for stage in range(stages)],
        )
    if masks:
        head = dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=channels,
            conv_out_channels=8,
            num_classes=classes,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        )
        config.roi_head.update(mask_roi_extractor=pooled, mask_head=head)
    part = dict(
        assigner=config.train_cfg.assigner,
        sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5, neg_pos_ub=-1,
                     add_gt_as_proposals=True, **sampler),
        allowed_border=-1,
        pos_weight=-1,
        mask_size=6,
        debug=False,
    )  # fmt: skip
    alone = {**part, 'sampler': {**part['sampler'], 'add_gt_as_proposals': False}}
    few = dict(
        nms_pre=20, max_per_img=10, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
    )
    config.train_cfg = dict(rpn=alone, rpn_proposal=few, rcnn=[part] * stages if stages else part)
    found = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    config.test_cfg = dict(rpn=few, rcnn={**found, 'mask_thr_binary': 0.5})
    return config


def term(tap: Any = FC_CLS, loss: Any = DKD, **fields: Any) -> dict[str, Any]:
    return dict(tap=tap, loss=loss) | dict(shared_rois=True) | fields


def terms() -> dict[str, Any]:
    return dict(
        dkd=term(),
        dist=term(loss=dict(type='DISTLoss')),
        boxes=term(FC_REG, dict(type='RoIBoxLoss')),
    )


def distilled(**others: Any) -> ConfigDict:
    """The config of a Faster R-CNN that learns from a wider one."""
    return toy.distilled(
        **{
            'student': detector(),
            'teacher': dict(config=detector(16), checkpoint=None),
            'terms': terms(),
            **others,
        }
    )
