"""Af-DCD on the last map of the backbone of PSPNet-R18, with pixel-wise KD of the class logits.

Source: `train_scripts` of the authors' repository (OSVAI/Af-DCD): the weights for Cityscapes,
the pair of Pascal VOC.
They train 40k iterations with a batch of 16; this is the zoo's 80k with a batch of 8.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        af_dcd=dict(
            tap='backbone[-1]',
            loss=dict(type='AfDCDLoss', features=2e-6, contrast=5e-3)),
        pixels=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', norm='spatial'))))
