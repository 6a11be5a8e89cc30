"""FGD from Cascade Mask R-CNN with deformable convolutions to Faster R-CNN R50.

Source: the configs in `configs/distillers/fgd` of the authors' repository (yzd-v/FGD). The
fifth level is a pooled fourth and is left out.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
    terms=dict(
        fgd=dict(
            tap='neck[:4]',
            loss=dict(
                type='FGDLoss', temperature=0.5,
                foreground=5e-5, background=2.5e-5, attention=5e-5, relation=5e-7))))
