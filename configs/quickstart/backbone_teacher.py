"""The detection teacher's backbone learns from the segmentation of the pictures."""

_base_ = 'backbone_student.py'
model = dict(
    backbone=dict(stem_channels=24, base_channels=24),
    decode_head=dict(in_channels=[48, 96, 192], channels=64))

train_cfg = dict(max_iters=2500, val_interval=2500)
param_scheduler = [dict(type='OneCycleLR', eta_max=4e-3, total_steps=2500, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=2500))
