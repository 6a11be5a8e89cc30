"""CrossKD on FCOS, behind the second of four convolutions of the towers.

Source: the authors' README, 41.1 AP, and their settings for this pair.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    terms=dict(
        crosskd=dict(
            tap='bbox_head',
            cross_at=-2,
            loss=dict(
                type='CrossKDLoss', class_weight=0.4, box_weight=0.75, boxes='iou',
                normaliser='centerness'))))
