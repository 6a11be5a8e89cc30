"""CrossKD on RetinaNet from a transformer, behind the third of four convolutions of the towers.

Source: the authors' README, 38.0 AP, and their settings for RetinaNet. The teacher is to be
trained first.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::predictions/retinanet_swin-t_1x_coco.py',
        checkpoint='work_dirs/retinanet_swin-t_1x_coco/epoch_12.pth'),
    terms=dict(
        crosskd=dict(
            tap='bbox_head',
            cross_at=-1,
            loss=dict(
                type='CrossKDLoss', class_weight=1.0, box_weight=1.0, boxes='giou'))))
