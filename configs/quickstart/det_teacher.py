"""The detection teacher: three times as wide as the student, with a deeper head."""

_base_ = 'det_student.py'
model = dict(
    backbone=dict(
        stem_channels=24,
        base_channels=24,
        init_cfg=dict(checkpoint='work_dirs/quickstart/backbone_teacher/backbone_teacher.pth')),
    neck=dict(in_channels=[24, 48, 96, 192]),
    bbox_head=dict(stacked_convs=2))
