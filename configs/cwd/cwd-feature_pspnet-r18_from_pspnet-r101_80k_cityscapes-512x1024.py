"""CWD on the output of the pyramid pooling module, which an adapter widens from 128 to 512.

Source: the run `False_False_True_channel_kl_35_4_v1` of the authors' TorchDistiller, whose
adapter has a batch norm and a ReLU behind its 1x1 convolution.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        cwd=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='CWDLoss', weight=35.0, temperature=4.0))))
