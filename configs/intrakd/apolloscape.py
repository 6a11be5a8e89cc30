"""Data and schedule for the road markings of ApolloScape: 37 classes, 255 is ignored.

Source: scripts for training without distillation in the authors' Codes-for-IntRA-KD. They cut
off the upper 1,700 of 2,710 rows, halve the rest, take crops of 1488x496 for ERFNet (1380x460
for PSPNet), rotate by up to 10 degrees and do not flip, as arrows would change their class; 24
epochs, batch 8, SGD with momentum 0.9, decay 1e-4 and (1 - epoch / 24)^0.9. Ours are the split
by roads (the authors' list of training images is not public) and the classes' names.
"""
_base_ = ['../_base_/kd_dense.py', 'mmseg::_base_/default_runtime.py']

crop_size = (496, 1488)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='kd_dense.ApolloScapeTrainIds'),
    dict(type='kd_dense.CropTop', fraction=1700 / 2710),
    dict(type='Resize', scale=(1692, 505), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomRotate', prob=1.0, degree=10.0, pad_val=0, seg_pad_val=255),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='kd_dense.CropTop', fraction=1700 / 2710),
    dict(type='Resize', scale=(1692, 505), keep_ratio=True),
    # Predictions are scored at the resolution of the data.
    dict(type='LoadAnnotations'),
    dict(type='kd_dense.ApolloScapeTrainIds'),
    dict(type='kd_dense.CropTop', fraction=1700 / 2710, keys=('gt_seg_map',)),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='kd_dense.ApolloScape',
        data_root='data/apolloscape',
        parts=('road02', 'road03'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='kd_dense.ApolloScape',
        data_root='data/apolloscape',
        parts=('road04',),
        pipeline=test_pipeline,
        test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=24, by_epoch=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=True),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=True, interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))

# What is no marking, and the last class, noise, count little.
class_weight = [0.05] + 35 * [1.0] + [0.05]
