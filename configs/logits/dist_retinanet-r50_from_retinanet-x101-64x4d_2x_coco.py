"""DIST on the class logits of all levels, which are sigmoids.

Source: the authors' DIST for detectors in hunto/MasKD, and README of DIST_KD: this pair of models.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
    terms=dict(dist=dict(tap='bbox_head.retina_cls', loss=dict(type='DISTLoss', weight=1.0))))
