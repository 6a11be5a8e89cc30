"""Rotated RetinaNet with distributions and the L1 loss of the five numbers: the student.

Source: the README of the authors of Rotated LD names this pair; the config is not public, and this is
theirs for GWD with the zoo's loss.
"""
_base_ = [
    '../_base_/kd_dense.py',
    'mmrotate::rotated_retinanet/rotated-retinanet-hbox-oc_r50_fpn_1x_dota.py']
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(type='kd_dense.DistributionRotatedRetinaHead', reg_max=8))
train_pipeline = [
    dict(type='mmdet.LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
    dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
    dict(type='mmdet.Resize', scale=(1024, 1024), keep_ratio=True),
    dict(
        type='mmdet.RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='mmdet.PackDetInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
