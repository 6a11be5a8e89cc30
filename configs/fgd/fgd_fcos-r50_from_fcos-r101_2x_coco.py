"""FGD on the pyramid of FCOS.

Source: the configs in `configs/distillers/fgd` of the authors' repository (yzd-v/FGD). Their
student's head regresses with GIoU and centre sampling; the zoo has none such of 24 epochs.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    inherit=('neck', 'bbox_head'),
    terms=dict(
        fgd=dict(
            tap='neck',
            loss=dict(
                type='FGDLoss', temperature=0.8,
                foreground=1.6e-3, background=8e-4, attention=8e-4, relation=8e-6))))
