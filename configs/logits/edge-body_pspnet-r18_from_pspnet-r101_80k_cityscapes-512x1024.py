"""Class distributions at the edges of classes, and channel-wise distillation away from them.

Source: the idea of BPKD, whose training code was never released. The form is ours, and the weights
are those of KD in CIRKD and of CWD's authors.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        edge=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='KDLoss', weight=1.0, where='edge', edge=7)),
        body=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='CWDLoss', weight=3.0, temperature=4.0, where='body', edge=7))))
