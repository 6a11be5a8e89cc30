"""DIST on the class logits of the one head that there is.

Source: the weight of the authors' DIST_KD for convolutional models. Nobody has published DIST for
this pair.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::segformer/segformer_mit-b4_8xb1-160k_cityscapes-1024x1024.py',
    terms=dict(dist=dict(tap='decode_head.conv_seg', loss=dict(type='DISTLoss', weight=1.0))))
