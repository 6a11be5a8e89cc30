"""Rotated RetinaNet with distributions and the Kullback-Leibler divergence (KLD): the student.

Source: `rotated_retinanet_distribution_hbb_kld_r18_r34_fpn_1x_dota_oc.py` of the authors of Rotated
LD.
"""
_base_ = './rotated-retinanet-distribution_r18_1x_dota.py'
model = dict(
    bbox_head=dict(
        reg_decoded_bbox=True,
        loss_bbox=dict(
            _delete_=True,
            type='GDLoss_v1', loss_type='kld', fun='log1p', tau=1, loss_weight=1.0)))
