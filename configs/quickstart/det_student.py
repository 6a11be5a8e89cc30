"""The detection student: GFL on a ResNet-18 an eighth as wide as usual."""

_base_ = 'scenes_det.py'
model = dict(
    type='GFL',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[128.0, 128.0, 128.0],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(
        type='ResNet',
        depth=18,
        deep_stem=True,
        stem_channels=8,
        base_channels=8,
        norm_eval=False,
        # trained on the segmentation of the same pictures, in place of ImageNet
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint='{{fileDirname}}/checkpoints/backbone_student.pth')),
    neck=dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=64, start_level=1, num_outs=3),
    bbox_head=dict(
        type='GFLHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=1,
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=3,
            scales_per_octave=1,
            strides=[8, 16, 32]),
        reg_max=8,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100))
