"""PKD on four levels of RetinaNet R50's pyramid, from Mask R-CNN with a Swin-S.

Source: `configs/distill/mmdet/pkd` of mmrazor, where the authors' code is. Levels are
paired by their number, as there: strides 8 to 64 with strides 4 to 32, which the student's
maps are resized to.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    terms=dict(
        pkd=dict(
            tap='neck[:4]',
            loss=dict(type='PKDLoss', weight=6.0))))
