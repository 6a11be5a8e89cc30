"""The detection student's backbone learns from the segmentation of the pictures."""

_base_ = 'seg_student.py'
model = dict(
    # the strides of detection, and all levels that its neck uses
    backbone=dict(strides=(1, 2, 2, 2), init_cfg=[]),  # PyTorch's own start values
    decode_head=dict(
        in_channels=[16, 32, 64], in_index=[1, 2, 3], input_transform='resize_concat'))

train_cfg = dict(max_iters=1200, val_interval=1200)
param_scheduler = [dict(type='OneCycleLR', eta_max=4e-3, total_steps=1200, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=1200))
