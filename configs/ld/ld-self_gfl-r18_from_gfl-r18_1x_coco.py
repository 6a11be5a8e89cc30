"""Self-distillation: LD on positives from a trained model of the same kind.

Train the teacher first, with `gfl_r18_1x_coco.py`. Source: the authors' README, "Self-LD", on the
main distillation region only.
"""
_base_ = ['../_base_/kd_dense.py', './gfl_r18_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::ld/gfl_r18_1x_coco.py',
        checkpoint='work_dirs/gfl_r18_1x_coco/epoch_12.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=0.25, vlr_weight=0.0, kd_weight=0.0))))
