"""DKD on the class logits of the regions that the student has sampled.

Source: `detection/` of the authors' repository (megvii-research/mdistiller), for this pair.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    terms=dict(
        dkd=dict(
            tap='roi_head.bbox_head.fc_cls',
            shared_rois=True,
            loss=dict(type='DKDLoss', alpha=1.0, beta=0.25, temperature=1.0))))
