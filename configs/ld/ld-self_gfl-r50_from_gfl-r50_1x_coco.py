"""Self-distillation: LD on positives from a trained model of the same kind.

Source: the authors' README, "Self-LD", on the main distillation region only.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.0, kd_weight=0.0))))
