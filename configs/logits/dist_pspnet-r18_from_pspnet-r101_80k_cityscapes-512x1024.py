"""DIST on the class logits of both heads.

Source: `train_kd.py` and `pspnet_res18.sh` of the authors' DIST_KD, whose teacher of this student
is a DeepLabV3, and who train 40k iterations with batch 16.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        dist=dict(tap='decode_head.conv_seg', loss=dict(type='DISTLoss', weight=1.0)),
        dist_aux=dict(tap='auxiliary_head.conv_seg', loss=dict(type='DISTLoss', weight=0.4))))
