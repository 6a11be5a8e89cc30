"""What they share: the detection student, and a schedule of minutes."""

_base_ = '../../../configs/quickstart/det_student.py'
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=200)
param_scheduler = [dict(type='OneCycleLR', eta_max=3e-3, total_steps=200, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=200))
