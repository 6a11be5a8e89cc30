"""LD on positives and on the VLR, classification distillation, and imitation in GI boxes.

Source: the authors' README, "Main KD + Main LD + VLR LD + GI imitation", 42.4 AP; weight 2 is
that of `ld_r50_gflv1_r101_fpn_coco_1x.py`.
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
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.25, kd_weight=10.0)),
        im=dict(tap='neck', loss=dict(type='LDImitationLoss', weight=2.0, region='gibox'))))
