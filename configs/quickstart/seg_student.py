"""The segmentation student: a ResNet-18 an eighth as wide as usual, and an FCN head."""

_base_ = 'scenes_seg.py'
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[128.0, 128.0, 128.0],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        size=(48, 48),
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=1)),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=8,
        base_channels=8,
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=3,
        channels=32,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        init_cfg=None,  # mmseg's small start values stay at "all background" for long here
        # the original line's mmseg, 1.2.2, fails on class weights where pixels are ignored
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0] * 10 + [0.3])),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
