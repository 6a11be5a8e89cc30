"""The teacher: the same detector, three times as wide, trained for twice as long."""

_base_ = 'student.py'

model = dict(backbone=dict(base_channels=48), neck=dict(in_channels=[48, 96, 192, 384]))

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=24, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=24, val_interval=6)
default_hooks = dict(checkpoint=dict(interval=6))
