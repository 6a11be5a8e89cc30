"""PKD on four levels of RetinaNet R50's pyramid, from those of FCOS.

Source: `configs/distill/mmdet/pkd` of mmrazor, where the authors' code is.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py',
    terms=dict(
        pkd=dict(
            tap='neck[:4]',
            loss=dict(type='PKDLoss', weight=10.0))))
