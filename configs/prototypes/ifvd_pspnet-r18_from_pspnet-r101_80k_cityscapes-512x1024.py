"""IFVD on the features in front of PSPNet's class logits.

Source: the defaults of the authors' `train_options.py`: one of three terms, for crops of 512x512 and
40k iterations with batch 8. The others are class distributions and a critic.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        ifvd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='IFVDLoss', weight=200.0))))
