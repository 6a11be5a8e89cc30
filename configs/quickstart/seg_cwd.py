"""The segmentation student with CWD, on the class logits and on the last stage's features.

Started from the authors' weight 3 and temperature 4 on the logits; on this data, temperature 2
and a term on the features gave more (on the validation split).
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
        logits=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', weight=3.0, temperature=2.0)),
        features=dict(
            tap='backbone.layer4',
            loss=dict(type='CWDLoss', weight=10.0, temperature=1.0))))
