"""Pairs of queries with masks: Mask2Former R50 from Swin-S, semantic segmentation.

Source: none is published; the weights and costs are those of Mask2Former, for the teacher's masks
in the place of classes.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::mask2former/mask2former_swin-s_8xb2-90k_cityscapes-512x1024.py',
    terms=dict(queries=dict(tap='decode_head', loss=dict(type='QueryMaskLoss'))))
