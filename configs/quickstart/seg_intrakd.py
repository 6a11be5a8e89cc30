"""The segmentation student with IntRA-KD: region affinities, attention maps, class logits.

The classes of Scenes are its regions.
"""

_base_ = 'seg_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='configs/quickstart/seg_teacher.py',
        checkpoint='configs/quickstart/checkpoints/seg_teacher.pth'),
    terms=dict(
        affinity=dict(
            tap='backbone.layer4', loss=dict(type='IntRALoss', kernel=5, weight=1.0)),
        attention=dict(tap='backbone.layer4', loss=dict(type='AttentionMapLoss', weight=1.0)),
        pixels=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', norm='spatial', weight=1.0, temperature=2.0))))
