"""FGD on the pyramid of SOLO, for instance segmentation.

Source: the configs in `configs/distillers/fgd` of the authors' repository (yzd-v/FGD). Their
teacher is a SOLO R101 of 36 epochs, which the zoo does not have: this one is the R50 of 36
epochs. The fifth level is a pooled fourth and is left out.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::solo/solo_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::solo/solo_r50_fpn_3x_coco.py',
    inherit=('neck', 'mask_head'),
    terms=dict(
        fgd=dict(
            tap='neck[:4]',
            loss=dict(
                type='FGDLoss', temperature=0.5,
                foreground=1e-3, background=5e-4, attention=5e-4, relation=5e-6))))
