"""PGD on GFL: features of both towers, where the teacher's predictions are best.

Source: the authors' README, 43.8 AP from a teacher of 45.8, and their settings for GFL. Their teacher
has had 36 epochs on images of many sizes; the zoo has none.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    inherit=('bbox_head',),
    terms=dict(
        pgd_classes=dict(tap='bbox_head.cls_convs.3', loss=dict(
            type='PGDClassLoss', foreground=0.04, background=0.02, attention=0.0008,
            temperature=0.8, topk=30)),
        pgd_boxes=dict(tap='bbox_head.reg_convs.3', loss=dict(
            type='PGDBoxLoss', foreground=0.064, attention=0.0008, temperature=0.8, topk=30))))
