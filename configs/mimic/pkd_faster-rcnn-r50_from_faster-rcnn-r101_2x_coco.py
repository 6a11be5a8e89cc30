"""PKD on the pyramid of Faster R-CNN R50.

Source: `configs/distill/mmdet/pkd` of mmrazor, where the authors' code is. The
fifth level is a pooled fourth and is left out.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    terms=dict(
        pkd=dict(
            tap='neck[:4]',
            loss=dict(type='PKDLoss', weight=6.0))))
