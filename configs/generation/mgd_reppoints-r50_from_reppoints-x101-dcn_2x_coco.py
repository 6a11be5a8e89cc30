"""MGD on the pyramid of RepPoints R50, before its group norm.

Source: the configs in `det/configs/distillers/mgd` of the authors' repository (yzd-v/MGD).
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
    inherit=('neck', 'bbox_head'),
    terms=dict(
        mgd=dict(
            tap='neck.fpn_convs.*.conv',
            loss=dict(type='MGDLoss', weight=2e-5, mask_ratio=0.65))))
