"""DIST on the class logits of shared regions, and mimicry of the pyramid behind convolutions.

Source: the authors' DIST for detectors in hunto/MasKD, and README of DIST_KD: this pair of models.
Of the cascade its first stage is the teacher, as there.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::cascade_rcnn/cascade-mask-rcnn_x101-64x4d_fpn_20e_coco.py',
    terms=dict(
        dist=dict(
            tap=dict(
                student='roi_head.bbox_head.fc_cls', teacher='roi_head.bbox_head.0.fc_cls'),
            shared_rois=True, loss=dict(type='DISTLoss', weight=1.0)),
        mimic=dict(tap='neck', loss=dict(type='FitNetsLoss', weight=1.0),
                   adapter=dict(type='Adapter'))))
