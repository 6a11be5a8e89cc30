"""CWD on all levels of the pyramid.

Source: mmrazor's `cwd_fpn_retina_r101_retina_r50_1x_coco.py`, but with the weights of this
teacher: that file inherits the checkpoint of a Faster R-CNN.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
    terms=dict(cwd=dict(tap='neck', loss=dict(type='CWDLoss', weight=10.0, temperature=1.0))))
