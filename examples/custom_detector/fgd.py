"""FGD for the student: the preset's recipe, with settings for features of another magnitude."""

_base_ = ['../../configs/_base_/kd_dense.py', 'student.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='examples/custom_detector/teacher.py',
        checkpoint='work_dirs/teacher/epoch_24.pth',
    ),
    inherit=('neck', 'bbox_head'),
    terms=dict(
        fgd=dict(
            tap='neck',
            loss=dict(
                type='FGDLoss',
                temperature=4.0,
                foreground=3e-3,
                background=5e-3,
                attention=1e-2,
                relation=5e-6,
            ),
        )
    ),
)
