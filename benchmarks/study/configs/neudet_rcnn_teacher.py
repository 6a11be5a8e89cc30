"""NEU-DET, defects of steel: a teacher with region proposals, on a MobileNetV2 from ImageNet."""

_base_ = 'neudet_rcnn_student.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(2, 4, 6),
        norm_cfg=dict(type='BN'),
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$REAL_PICTURES:data/real}}/weights/mobilenet_v2.pth'
        ),
    ),
    neck=dict(in_channels=[32, 96, 320], start_level=0),
)
param_scheduler = [dict(type='OneCycleLR', eta_max=2e-3, total_steps=1600, by_epoch=False)]
train_cfg = dict(max_iters=1600, val_interval=1600)
default_hooks = dict(checkpoint=dict(interval=1600))
