"""The detection teacher: three times as wide as the student, with a deeper head."""

_base_ = 'det_student.py'
model = dict(
    backbone=dict(
        stem_channels=24,
        base_channels=24,
        # quickstart.sh --from-scratch trains it
        init_cfg=dict(checkpoint='work_dirs/quickstart/checkpoints/backbone_teacher.pth')),
    neck=dict(in_channels=[24, 48, 96, 192]),
    bbox_head=dict(stacked_convs=2))

train_cfg = dict(max_iters=2000, val_interval=2000)
param_scheduler = [dict(type='OneCycleLR', eta_max=3e-3, total_steps=2000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=2000))
