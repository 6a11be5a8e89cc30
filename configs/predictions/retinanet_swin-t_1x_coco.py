"""The zoo's RetinaNet on a Swin-T, of which it has the config and no weights: a teacher.

Source: mmdet.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py']
