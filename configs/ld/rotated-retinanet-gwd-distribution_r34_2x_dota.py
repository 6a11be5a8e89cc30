"""The same on a ResNet-34, for 24 epochs: the teacher.

Source: `rotated_retinanet_distribution_hbb_gwd_r34_fpn_2x_dota_oc.py` of the authors of Rotated LD.
"""
_base_ = './rotated-retinanet-gwd-distribution_r18_1x_dota.py'
model = dict(backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')))
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1)]
