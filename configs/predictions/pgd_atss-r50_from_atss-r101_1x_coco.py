"""PGD on ATSS: features of both towers, where the teacher's predictions are best.

Source: the authors' README, 44.2 AP from a teacher of 45.5, and their settings for ATSS. Their teacher
has had 36 epochs on images of many sizes; the zoo has none.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::atss/atss_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::atss/atss_r101_fpn_1x_coco.py',
    inherit=('bbox_head',),
    terms=dict(
        pgd_classes=dict(tap='bbox_head.cls_convs.3', loss=dict(
            type='PGDClassLoss', foreground=0.08, background=0.04, attention=0.0008,
            temperature=0.8, topk=9)),
        pgd_boxes=dict(tap='bbox_head.reg_convs.3', loss=dict(
            type='PGDBoxLoss', foreground=0.128, attention=0.0008, temperature=0.8, topk=9))))
