"""ICKD on the last map of the backbone, in windows.

Source: the 4x4 windows are from the authors' README for VOC, whose training code for segmentation
is not public. Their weight is for classification: here it is set by a share.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        ickd=dict(
            tap='backbone[-1]',
            loss=dict(type='ICKDLoss', weight=2.5, windows=(4, 4)),
            share=0.1,
            adapter=dict(type='Adapter', norm=True))))
