"""DKD on each stage of a cascade, on the regions of that stage.

Source: `detection/` of the authors' repository (megvii-research/mdistiller), for Faster R-CNN.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::cascade_rcnn/cascade-rcnn_r101_fpn_20e_coco.py',
    terms=dict(
        dkd_0=dict(tap='roi_head.bbox_head.0.fc_cls', shared_rois=True,
                   loss=dict(type='DKDLoss', alpha=1.0, beta=0.25, temperature=1.0)),
        dkd_1=dict(tap='roi_head.bbox_head.1.fc_cls', shared_rois=True,
                   loss=dict(type='DKDLoss', alpha=1.0, beta=0.25, temperature=1.0)),
        dkd_2=dict(tap='roi_head.bbox_head.2.fc_cls', shared_rois=True,
                   loss=dict(type='DKDLoss', alpha=1.0, beta=0.25, temperature=1.0))))
