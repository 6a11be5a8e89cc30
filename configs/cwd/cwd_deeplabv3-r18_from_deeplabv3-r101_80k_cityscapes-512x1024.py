"""CWD on the class logits.

Source: temperature and logit weight of the authors, which CIRKD's re-run on this pair of
models kept; it added a feature, a pixel-wise and an adversarial term, and trained 40k
iterations with batch 16.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', weight=3.0, temperature=4.0))))
