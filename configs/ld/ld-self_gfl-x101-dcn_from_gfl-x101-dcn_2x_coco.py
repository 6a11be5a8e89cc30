"""Self-distillation of a large model with deformable convolutions: LD on positives.

Source: the authors' README, "Self-LD", on the main distillation region only; the weight is that
of the smaller models.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco.py',
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.0, kd_weight=0.0))))
