"""The detection student with the pair-wise part of SKD on the feature pyramid."""

_base_ = 'det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/det_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/det_teacher.pth'),
    terms=dict(
        pair=dict(tap='neck', loss=dict(type='PairWiseLoss', weight=0.5, scale=0.25))))
