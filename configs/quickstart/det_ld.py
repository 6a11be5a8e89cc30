"""The detection student with LD: classes, main region and valuable localization region."""

_base_ = 'det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='configs/quickstart/det_teacher.py',
        checkpoint='configs/quickstart/checkpoints/det_teacher.pth'),
    terms=dict(ld=dict(tap='bbox_head', loss=dict(type='LDLoss'))))
