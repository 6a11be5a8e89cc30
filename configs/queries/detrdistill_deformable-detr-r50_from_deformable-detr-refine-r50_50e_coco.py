"""DETRDistill, pairs of queries and features: Deformable DETR R50 from the one with refinement.

Source: weights and costs of the authors' configs for Deformable DETR. Their teacher has a
ResNet-101, of which the zoo has no weights.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    terms=dict(
        queries=dict(tap='bbox_head', loss=dict(type='QueryBoxLoss')),
        features=dict(tap='neck', loss=dict(type='QueryFeatureLoss', weight=1.0))))
