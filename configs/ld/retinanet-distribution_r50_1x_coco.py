"""RetinaNet with box distributions: the student, and its baseline.

Source: `ld_retina_r50_1x.py` of the authors of LD: the zoo's RetinaNet, another head, and with it
another loss of the boxes and another threshold of NMS.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    bbox_head=dict(
        type='kd_dense.DistributionRetinaHead',
        reg_max=16,
        reg_decoded_bbox=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
    test_cfg=dict(nms=dict(iou_threshold=0.6)))
