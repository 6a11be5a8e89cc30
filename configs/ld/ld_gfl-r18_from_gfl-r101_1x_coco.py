"""LD on positives and on the VLR, classification distillation on positives.

Source: the authors' README, 37.5 AP, and `ld_r18_gflv1_r101_fpn_coco_1x.py`: the defaults of
their head.
"""
_base_ = ['../_base_/kd_dense.py', './gfl_r18_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.25, kd_weight=10.0))))
