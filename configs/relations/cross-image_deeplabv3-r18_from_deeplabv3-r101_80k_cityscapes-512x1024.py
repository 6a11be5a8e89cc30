"""CIRKD's relations of a mini-batch on the features that DeepLabV3 makes of all its rates.

Source: `train_cirkd.py` of CIRKD, one of its four terms: it trains 40k iterations with batch 16, and has
KD on the logits and two queues beside it.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        cross_image=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='CrossImageLoss', weight=1.0, temperature=0.1))))
