"""DKD on the class logits of the regions that the student has sampled, and their box offsets.

Source: `detection/` of the authors' repository (megvii-research/mdistiller), for Faster R-CNN;
the weight of the boxes is a starting point.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py',
    terms=dict(
        dkd=dict(
            tap='roi_head.bbox_head.fc_cls',
            shared_rois=True,
            loss=dict(type='DKDLoss', alpha=1.0, beta=0.25, temperature=1.0)),
        boxes=dict(
            tap='roi_head.bbox_head.fc_reg',
            shared_rois=True,
            loss=dict(type='RoIBoxLoss', weight=1.0))))
