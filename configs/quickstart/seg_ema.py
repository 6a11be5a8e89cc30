"""The segmentation student with its own running average for a teacher (mean teacher).

Both see the same picture. The weight rises over the first 150 iterations, in which the average is
worth little.
"""

_base_ = 'seg_student.py'
custom_hooks = [dict(type='kd_dense.AverageHook')]
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(type='ema', momentum=0.01),
    terms=dict(
        average=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='KDLoss', weight=1.0, temperature=2.0),
            schedule=dict(warmup=150))))
