"""The detection student with FGD on the feature pyramid."""

_base_ = 'det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='configs/quickstart/det_teacher.py',
        checkpoint='configs/quickstart/checkpoints/det_teacher.pth'),
    terms=dict(fgd=dict(tap='neck', loss=dict(type='FGDLoss'))))
