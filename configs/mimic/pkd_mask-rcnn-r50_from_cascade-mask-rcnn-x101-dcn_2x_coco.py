"""PKD from Cascade Mask R-CNN with deformable convolutions to Mask R-CNN R50.

Source: the weight of `configs/distill/mmdet/pkd` of mmrazor for Faster R-CNN; nobody published
this pair.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
    terms=dict(
        pkd=dict(
            tap='neck[:4]',
            loss=dict(type='PKDLoss', weight=6.0))))
