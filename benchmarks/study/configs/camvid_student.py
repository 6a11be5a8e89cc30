"""SegFormer's head on a ResNet-18 a quarter as wide as usual, from scratch."""

_base_ = 'camvid.py'
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(160, 160),
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=1),
    ),
    backbone=dict(
        type='ResNetV1c', depth=18, stem_channels=16, base_channels=16, norm_cfg=norm_cfg
    ),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[16, 32, 64, 128],
        in_index=[0, 1, 2, 3],
        channels=32,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # roots of the frequencies' inverses: without them rare classes are not learnt in this time
        loss_decode=dict(
            type='CrossEntropyLoss',
            class_weight=[0.5, 0.4, 2.1, 0.4, 1.0, 0.7, 1.9, 1.9, 0.9, 2.6, 3.9],
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
