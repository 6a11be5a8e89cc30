"""DINOv2's features, a foundation model's, standardised, for the backbone of PSPNet R18.

Source: ours, what the preset `pkd` chooses.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='timm::vit_small_patch14_dinov2.lvd142m',
    terms=dict(
        pkd=dict(
            tap=dict(student='backbone[3]', teacher='backbone'),
            loss=dict(type='PKDLoss'),
            share=1.0)))
