"""It learns 5 to 9 from labels of these alone, and forgets: ERD is there, and counts nothing."""

_base_ = ['erd_teacher.py']
head = dict(type='kd_dense.IncrementalGFLHead', old_classes=5, num_classes=10)
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student={**_base_.model, 'bbox_head': {**_base_.model.bbox_head, **head}},
    teacher=dict(config='{{fileDirname}}/erd_teacher.py', checkpoint='of erd_teacher.py'),
    inherit=('backbone', 'neck', 'bbox_head'),
    terms=dict(erd=dict(tap='bbox_head', loss=dict(type='ERDLoss', weight=0.0))),
)
train_dataloader = dict(dataset=dict(metainfo=dict(classes=('5', '6', '7', '8', '9'))))
load_from = None
train_cfg = dict(max_iters=50)
param_scheduler = [dict(type='OneCycleLR', eta_max=1e-3, total_steps=50, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=50))
