"""ATSS with box distributions: the student, and its baseline.

Source: `atss_gfl_r50_1x.py` of the authors of LD: the zoo's ATSS, another head.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::atss/atss_r50_fpn_1x_coco.py']
model = dict(bbox_head=dict(type='kd_dense.DistributionATSSHead', reg_max=16))
