"""APD on the features in front of PSPNet's class logits, and KD on these.

Source: `tool/train.py` of the authors, who enlarge the logits to the size of the labels first, and train
the teacher's layers with an optimizer of their own.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        apd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='APDLoss', perspective=10.0, centres=10.0)),
        kd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='KDLoss', weight=10.0, valid_only=False, per='entry'))))
