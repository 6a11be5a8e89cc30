"""The small CellNet, with the large one as its teacher."""

_base_ = 'small.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='examples/plug_in/configs/large.py', checkpoint='work_dirs/large/iter_300.pth'),
    terms=dict(
        logits=dict(tap='classify', loss=dict(type='CWDLoss', weight=3.0, temperature=4.0)),
        features=dict(tap='encoder', loss=dict(type='CWDLoss', weight=1.0))))
