"""FGD on the pyramid of RetinaNet R50.

Source: the configs in `configs/distillers/fgd` of the authors' repository (yzd-v/FGD).
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
    inherit=('neck', 'bbox_head'),
    terms=dict(
        fgd=dict(
            tap='neck',
            loss=dict(
                type='FGDLoss', temperature=0.5,
                foreground=1e-3, background=5e-4, attention=5e-4, relation=5e-6))))
