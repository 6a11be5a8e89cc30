"""LD on positives alone, from a teacher with deformable convolutions.

Source: the authors' README, 45.4 AP; mmdet's `ld_r101-gflv1-r101-dcn_fpn_2x_coco.py` is the same.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101-dconv-c3-c5_fpn_ms-2x_coco.py',
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.0, kd_weight=0.0))))
