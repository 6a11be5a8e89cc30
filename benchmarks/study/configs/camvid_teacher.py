"""SegFormer's head on a MobileNetV2 that was trained on ImageNet."""

_base_ = 'camvid_student.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        strides=(1, 2, 2, 2, 1, 2, 1),
        dilations=(1, 1, 1, 1, 1, 1, 1),
        out_indices=(1, 2, 4, 6),
        norm_cfg=dict(type='BN'),
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$REAL_PICTURES:data/real}}/weights/mobilenet_v2.pth'
        ),
    ),
    decode_head=dict(in_channels=[24, 32, 96, 320], channels=128),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type='OneCycleLR', eta_max=1e-3, total_steps=1200, by_epoch=False)]
train_cfg = dict(max_iters=1200, val_interval=1200)
default_hooks = dict(checkpoint=dict(interval=1200))
