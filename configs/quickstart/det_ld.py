"""The detection student with LD: main region, valuable localization region, feature imitation.

The classes are left out: as softmax over logits that a sigmoid head trains, they took more than
they gave on this data.
"""

_base_ = 'det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='{{fileDirname}}/det_teacher.py',
        checkpoint='{{fileDirname}}/checkpoints/det_teacher.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='LDLoss', main_weight=1.0, vlr_weight=1.0, kd_weight=0.0)),
        imitation=dict(
            tap='neck', loss=dict(type='LDImitationLoss', region='inside', weight=0.1))))
