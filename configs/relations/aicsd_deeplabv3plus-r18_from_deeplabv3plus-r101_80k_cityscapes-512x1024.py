"""AICSD's classes: how alike the maps of DeepLabV3+'s class logits are to each other.

Source: head and student are the authors', who have other terms beside it. Their flags run another
one than their paper says, so that the weight is ours: it sets itself.
"""
_base_ = [
    '../_base_/kd_dense.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
]
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        aicsd=dict(tap='decode_head.conv_seg', loss=dict(type='ICKDLoss'), share=0.1)))
