"""The custom detector of the documentation: its teacher, on the schedule of the study."""

_base_ = 'parts_student.py'
model = dict(backbone=dict(base_channels=48), neck=dict(in_channels=[48, 96, 192, 384]))
