"""The segmentation student with IntRA-KD: region affinities, attention maps, class logits.

The classes of Scenes are its regions. The kernel is wider than the stride, so that no thin object
falls between the positions of a map.
"""

_base_ = 'seg_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/seg_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/seg_teacher.pth'),
    terms=dict(
        affinity=dict(
            tap='decode_head.convs', loss=dict(type='IntRALoss', kernel=9, weight=0.3)),
        attention=dict(
            tap='decode_head.convs', loss=dict(type='AttentionMapLoss', weight=1.0)),
        pixels=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', norm='spatial', weight=4.0, temperature=2.0))))
