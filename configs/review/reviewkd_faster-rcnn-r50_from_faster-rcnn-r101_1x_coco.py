"""ReviewKD on the pyramid of Faster R-CNN R50.

Source: the config of the authors' repository (dvlab-research/ReviewKD) for this pair, which trains
for 180k iterations of 8 images, with a learning rate of 0.01.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    terms=dict(
        review=dict(
            tap='neck',
            loss=dict(type='ReviewKDLoss', weight=1.0))))
