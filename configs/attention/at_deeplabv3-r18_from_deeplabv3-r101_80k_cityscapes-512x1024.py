"""Attention transfer on the features in front of DeepLabV3's class logits.

Source: `train_at.sh` of CIRKD, which trains 40k iterations with batch 16, and has KD on the logits
beside it.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        at=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='ATLoss', weight=10000.0))))
