"""LD on Rotated RetinaNet: its teacher has to be trained first.

Source: the README of the authors of Rotated LD names this pair; the config is not public, and this is
theirs for GWD with the zoo's loss.
"""
_base_ = ['../_base_/kd_dense.py', './rotated-retinanet-distribution_r18_1x_dota.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::ld/rotated-retinanet-distribution_r34_2x_dota.py',
        checkpoint='work_dirs/rotated-retinanet-distribution_r34_2x_dota/epoch_24.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(type='RotatedLDLoss', ld_weight=10.0, kd_weight=20.0))))
