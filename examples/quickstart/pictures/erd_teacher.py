"""The detection teacher, made a detector of the digits 0 to 4, for the picture of ERD."""

_base_ = 'base.py'
model = dict(
    backbone=dict(stem_channels=24, base_channels=24, init_cfg=None),
    neck=dict(in_channels=[24, 48, 96, 192]),
    bbox_head=dict(stacked_convs=2, num_classes=5),
)
train_dataloader = dict(dataset=dict(metainfo=dict(classes=('0', '1', '2', '3', '4'))))
load_from = '{{fileDirname}}/../../../configs/quickstart/checkpoints/det_teacher.pth'
