"""CrossKD on GFL, and PKD on all levels of the neck beside it.

Source: the authors' README, 43.9 AP, and their settings for this pair.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    terms=dict(
        crosskd=dict(
            tap='bbox_head',
            cross_at=-1,
            loss=dict(
                type='CrossKDLoss', class_weight=1.0, box_weight=4.0, boxes='distributions')),
        pkd=dict(tap='neck', loss=dict(type='PKDLoss', weight=6.0))))
