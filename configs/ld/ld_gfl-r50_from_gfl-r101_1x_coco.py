"""LD on positives and on the VLR, classification distillation on positives.

Source: the authors' README, 42.1 AP; settings of `ld_r50_gflv1_r101_fpn_coco_1x.py`, but without
the feature imitation that this file adds and the README's entry does not.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.25, kd_weight=10.0))))
