"""MGD on the pyramid of RetinaNet R50.

Source: the configs in `det/configs/distillers/mgd` of the authors' repository (yzd-v/MGD).
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::retinanet/retinanet_x101-64x4d_fpn_ms-640-800-3x_coco.py',
    inherit=('neck', 'bbox_head'),
    terms=dict(
        mgd=dict(
            tap='neck',
            loss=dict(type='MGDLoss', weight=2e-5, mask_ratio=0.65))))
