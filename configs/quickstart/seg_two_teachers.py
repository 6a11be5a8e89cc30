"""The segmentation student with CWD, and with its own running average beside that teacher."""

_base_ = 'seg_cwd.py'
custom_hooks = [dict(type='kd_dense.AverageHook')]
model = dict(
    teacher=dict(
        _delete_=True,
        large=dict(
            config='{{fileDirname}}/seg_teacher.py',
            checkpoint='{{fileDirname}}/checkpoints/seg_teacher.pth'),
        average=dict(type='ema', momentum=0.01)),
    terms=dict(
        logits=dict(teacher='large'),
        features=dict(teacher='large'),
        average=dict(
            tap='decode_head.conv_seg',
            teacher='average',
            loss=dict(type='KDLoss', weight=1.0, temperature=2.0),
            schedule=dict(warmup=150))))
