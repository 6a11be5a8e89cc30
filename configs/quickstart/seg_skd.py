"""The segmentation student with SKD: pixel-wise, pair-wise and holistic.

Made for maps of 65x65; here they have 6x6, so that the pool scale leaves 3x3 places to compare, and
the critic is narrower. The weight of the pixel-wise part belongs to a batch of 8, as the authors'.
"""

_base_ = 'seg_student.py'
custom_hooks = [dict(type='kd_dense.CriticHook')]
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/seg_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/seg_teacher.pth'),
    terms=dict(
        pixel=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='PixelWiseLoss', weight=1.0, temperature=2.0)),
        pair=dict(tap='backbone.layer4', loss=dict(type='PairWiseLoss', weight=3.0, scale=0.34)),
        holistic=dict(
            tap='decode_head.conv_seg', loss=dict(type='HolisticLoss', weight=0.01, width=4))))
