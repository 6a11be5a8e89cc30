"""MGD on the last map of the backbone of PSPNet-R18, with CWD on the class logits.

Source: the configs in `seg/configs/distillers/mgd` of the authors' repository (yzd-v/MGD).
They train 40k iterations on crops of 512x512; this is the zoo's schedule, on crops of 512x1024.
"""
_base_ = ['../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        mgd=dict(
            tap='backbone[-1]',
            loss=dict(type='MGDLoss', weight=2e-5, mask_ratio=0.75)),
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', weight=3.0, temperature=4.0))))
