"""PKD on the first four levels of RepPoints R50's pyramid.

Source: `configs/distill/mmdet/pkd` of mmrazor, where the authors' code is.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
    terms=dict(
        pkd=dict(
            tap='neck[:4]',
            loss=dict(type='PKDLoss', weight=10.0))))
