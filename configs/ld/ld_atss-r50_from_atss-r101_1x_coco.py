"""LD on ATSS: its teacher has to be trained first.

Source: `ld_r50_atss_r101_1x.py` of the authors; LD on the VLR weighs 0.15 of LD on positives.
"""
_base_ = ['../_base_/kd_dense.py', './atss-distribution_r50_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::ld/atss-distribution_r101_ms-2x_coco.py',
        checkpoint='work_dirs/atss-distribution_r101_ms-2x_coco/epoch_24.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(
                type='LDLoss', main_weight=0.25, vlr_weight=0.0375, vlr_factor=4.0,
                kd_weight=10.0))))
