"""The detection student with what is taken where no method is named: docs/auto.md."""

_base_ = 'det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/det_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/det_teacher.pth'),
    preset='auto')
