"""LD on FCOS: its teacher has to be trained first.

Source: `ld_r50_fcos_r101_1x.py` of the authors; LD on the other points inside boxes weighs 0.25
of LD on positives.
"""
_base_ = ['../_base_/kd_dense.py', './fcos-distribution_r50_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::ld/fcos-distribution_r101_ms-2x_coco.py',
        checkpoint='work_dirs/fcos-distribution_r101_ms-2x_coco/epoch_24.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(
                type='LDLoss', main_weight=0.25, region='inside', vlr_weight=0.0625,
                vlr_factor=4.0, kd_weight=10.0))))
