"""ADL on RetinaNet: classes, each against none, those that are far from the teacher's the most.

Source: the authors' config for R50 from R101, whose images are smaller (600 pixels) and whose
student sees unlabelled images as well.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
    terms=dict(
        adl=dict(
            tap='bbox_head', loss=dict(type='ADLLoss', weight=1.0, alpha=0.5, gamma=2.0))))
