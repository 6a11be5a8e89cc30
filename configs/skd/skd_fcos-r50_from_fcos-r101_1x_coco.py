"""The pair-wise part of SKD on all levels of the pyramid.

Source: the TPAMI version of the paper, which distils FCOS; its code for detectors is not
public. Weight and pool scale are those for segmentation, tap and models are a choice of ours.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py',
    terms=dict(
        pair=dict(tap='neck', loss=dict(type='PairWiseLoss', weight=0.5, scale=0.5))))
