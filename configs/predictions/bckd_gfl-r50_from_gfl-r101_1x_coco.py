"""BCKD on GFL: classes, each against none, and decoded boxes.

Source: the authors' README, 43.2 AP, and their config for this pair.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    terms=dict(
        bckd=dict(
            tap='bbox_head', loss=dict(type='BCKDLoss', class_weight=1.0, box_weight=4.0))))
