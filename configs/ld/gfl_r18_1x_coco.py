"""GFL on a ResNet-18, which mmdet's zoo has none of; the student, and its baseline.

Source: `gfl_r18_fpn_1x_coco.py` of the authors of LD: the zoo's GFL, another backbone.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]))
