"""The segmentation student with what is taken where no method is named: docs/auto.md."""

_base_ = 'seg_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/seg_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/seg_teacher.pth'),
    preset='auto')
