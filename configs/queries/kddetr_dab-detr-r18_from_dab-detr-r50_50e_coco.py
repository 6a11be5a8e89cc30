"""KD-DETR: DAB-DETR with a ResNet-18 from one with a ResNet-50.

Source: weights, temperature and both kinds of points of an author's code for DAB-DETR. The zoo has
no config of this student: it is that of the teacher with another backbone.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=dict(
        _base_.model,
        backbone=dict(
            _base_.model.backbone, depth=18,
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
        neck=dict(_base_.model.neck, in_channels=[512])),
    teacher='mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    terms=dict(
        teacher_points=dict(tap='bbox_head', loss=dict(type='QueryPointLoss', points='teacher')),
        random_points=dict(tap='bbox_head', loss=dict(type='QueryPointLoss', points='random'))))
