"""ERD: 40 classes of COCO learnt, 40 more to learn, with labels of these alone.

Source: Hi-FT/ERD, of the authors: this setting. Its boxes are made without strides; here they are
made with them.
"""
_base_ = ['../_base_/kd_dense.py', './gfl-last40_r50_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::erd/gfl-first40_r50_1x_coco.py',
        checkpoint='work_dirs/gfl-first40_r50_1x_coco/epoch_12.pth'),
    inherit=('backbone', 'neck', 'bbox_head'),
    terms=dict(erd=dict(tap='bbox_head', loss=dict(type='ERDLoss', classes=1.0, boxes=0.25))))
