"""FGD on the pyramid of RepPoints R50, before its group norm.

Source: the configs in `configs/distillers/fgd` of the authors' repository (yzd-v/FGD).
"""
_base_ = ['../_base_/kd_dense.py',
          'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
    inherit=('neck', 'bbox_head'),
    terms=dict(
        fgd=dict(
            tap='neck.fpn_convs.*.conv',
            loss=dict(
                type='FGDLoss', temperature=0.5,
                foreground=1.6e-3, background=8e-4, attention=8e-4, relation=8e-6))))
