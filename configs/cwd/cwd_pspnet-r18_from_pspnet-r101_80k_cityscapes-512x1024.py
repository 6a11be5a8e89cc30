"""CWD on the class logits, with the authors' temperature and weight.

Source: `exp_cwd.sh channel kl 3 4 False False False v1` of the authors' TorchDistiller. They
train 40k iterations on crops of 512x512; this is the zoo's schedule with the same optimizer,
batch and decay, on which mmrazor measured temperature=1, weight=5.
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
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', weight=3.0, temperature=4.0))))
