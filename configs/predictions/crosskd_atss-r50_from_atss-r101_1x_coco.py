"""CrossKD on ATSS, behind the third of four convolutions of the towers.

Source: the authors' README, 41.8 AP, and their settings for this pair.

They train with 8 images on each GPU.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::atss/atss_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::atss/atss_r101_fpn_1x_coco.py',
    terms=dict(
        crosskd=dict(
            tap='bbox_head',
            cross_at=-1,
            loss=dict(
                type='CrossKDLoss', class_weight=1.0, box_weight=1.0, centerness_weight=1.0))))
