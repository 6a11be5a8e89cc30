"""The same three times as wide, from the detection teacher's backbone and pyramid."""

_base_ = 'rcnn_student.py'
model = dict(
    backbone=dict(stem_channels=24, base_channels=24, init_cfg=None),
    neck=dict(in_channels=[24, 48, 96, 192]),
)
load_from = '{{fileDirname}}/../../../configs/quickstart/checkpoints/det_teacher.pth'
