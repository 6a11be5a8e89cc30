"""CCKD: products of the images of a batch, on the backbone's last map.

Source: ours, on the pair of the other relations. The authors train classifiers, and nobody
published a pair of segmenters: the kernel is the plain product, and the weight sets itself.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        cckd=dict(
            tap='backbone[-1]', loss=dict(type='CCKDLoss', kernel='bilinear'), share=0.1)))
