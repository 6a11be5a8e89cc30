"""LD on Rotated RetinaNet with KLD: its teacher has to be trained first.

Source: `rotated_retinanet_distribution_hbb_kld_r18_r34_fpn_1x_dota_oc.py` of the authors of Rotated
LD.
"""
_base_ = ['../_base_/kd_dense.py', './rotated-retinanet-kld-distribution_r18_1x_dota.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::ld/rotated-retinanet-kld-distribution_r34_2x_dota.py',
        checkpoint='work_dirs/rotated-retinanet-kld-distribution_r34_2x_dota/epoch_24.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='RotatedLDLoss', ld_weight=15.0, kd_weight=15.0))))
