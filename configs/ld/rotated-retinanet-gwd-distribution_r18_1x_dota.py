"""Rotated RetinaNet with distributions and the Gaussian Wasserstein distance (GWD): the student.

Source: `rotated_retinanet_distribution_hbb_gwd_r18_r34_fpn_1x_dota_oc.py` of the authors of Rotated
LD.
"""
_base_ = './rotated-retinanet-distribution_r18_1x_dota.py'
model = dict(
    bbox_head=dict(
        reg_decoded_bbox=True,
        loss_bbox=dict(
            _delete_=True,
            type='GDLoss', loss_type='gwd', loss_weight=5.0)))
