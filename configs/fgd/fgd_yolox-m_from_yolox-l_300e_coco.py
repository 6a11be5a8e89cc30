"""FGD on the pyramid of YOLOX, with an adapter from 192 to 256 channels.

Source: the configs in `configs/distillers/fgd` of the authors' repository (yzd-v/FGD), branch
yolox.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::yolox/yolox_m_8xb8-300e_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::yolox/yolox_l_8xb8-300e_coco.py',
    terms=dict(
        fgd=dict(
            tap='neck',
            loss=dict(
                type='FGDLoss', temperature=0.5,
                foreground=2e-3, background=1e-3, attention=1e-3, relation=1e-5))))
