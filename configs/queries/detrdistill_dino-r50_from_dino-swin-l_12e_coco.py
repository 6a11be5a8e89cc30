"""DETRDistill, pairs of queries and features: DINO with a ResNet-50 from DINO with a Swin-L.

Source: weights and costs of the authors' configs for Deformable DETR; for DINO none are published.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py',
    terms=dict(
        queries=dict(tap='bbox_head', loss=dict(type='QueryBoxLoss')),
        features=dict(
            tap=dict(student='neck', teacher='neck[1:5]'),
            loss=dict(type='QueryFeatureLoss', weight=1.0))))
