"""FRS on the pyramid of Faster R-CNN R50, where the teacher's region proposals are sure.

Source: the settings of United Perception for R50 from R152; the zoo's largest teacher of this
kind with published weights is R101.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    terms=dict(
        frs=dict(
            tap='neck',
            loss=dict(type='FRSLoss', features=0.002, classes=0.1, scores='rpn_head'),
            schedule=dict(warmup=500))))
