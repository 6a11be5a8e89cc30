"""The detection student with CWD on the feature pyramid."""

_base_ = 'det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/det_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/det_teacher.pth'),
    terms=dict(fpn=dict(tap='neck', loss=dict(type='CWDLoss', weight=3.0, temperature=1.0))))
