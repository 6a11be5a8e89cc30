"""Pairs of queries with masks: Mask2Former R50 from Swin-S, instance segmentation.

Source: none is published; the weights and costs are those of Mask2Former, for the teacher's masks
in the place of objects.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py',
    terms=dict(queries=dict(tap='panoptic_head', loss=dict(type='QueryMaskLoss'))))
