"""CrossKD on RetinaNet, behind the third of four convolutions of the towers.

Source: the authors' README, 39.7 AP, and their settings for this pair.

Their student's pyramid has its extra levels made of its outputs; the zoo's, which is the student
here, of its input.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
    terms=dict(
        crosskd=dict(
            tap='bbox_head',
            cross_at=-1,
            loss=dict(
                type='CrossKDLoss', class_weight=1.0, box_weight=1.0, boxes='giou'))))
