"""DeFeat on the pyramid of Faster R-CNN R50.

Source: the settings of United Perception for R50 from R152, without its term on the backbone; the
zoo's largest teacher of this kind with published weights is R101.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    terms=dict(
        defeat=dict(
            tap='neck',
            loss=dict(type='DeFeatLoss', objects=4.0, background=16.0),
            schedule=dict(warmup=2000))))
