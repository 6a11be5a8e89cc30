"""FCOS with box distributions: the student, and its baseline.

Source: `fcos_gfl_r50_center.py` and `ld_r50_fcos_r101_1x.py` of the authors of LD: the zoo's FCOS
with the same tricks, another head.
"""
_base_ = [
    '../_base_/kd_dense.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py']
model = dict(
    # distances are in strides in any case
    bbox_head=dict(type='kd_dense.DistributionFCOSHead', reg_max=16, norm_on_bbox=False))
