"""FBKD on the pyramid of Faster R-CNN R50.

Source: `configs/distill/mmdet/fbkd` of mmrazor, with the weights of the authors' code.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
    terms=dict(
        fbkd=dict(
            tap='neck[:4]',
            loss=dict(
                type='FBKDLoss', masked=7e-5, channel=4e-3, spatial=4e-3, relation=7e-5))))
