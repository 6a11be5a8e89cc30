"""PGD on FCOS: features of both towers, where the teacher's predictions are best.

Source: the authors' README, 42.5 AP from a teacher of 43.1, and their settings for FCOS. Their student
has 12 epochs, and their teacher has had 36; the zoo has none.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    inherit=('bbox_head',),
    terms=dict(
        pgd_classes=dict(tap='bbox_head.cls_convs.3', loss=dict(
            type='PGDClassLoss', foreground=0.04, background=0.02, attention=0.0008,
            temperature=0.8, topk=30)),
        pgd_boxes=dict(tap='bbox_head.reg_convs.3', loss=dict(
            type='PGDBoxLoss', foreground=0.064, attention=0.0008, temperature=0.8, topk=30))))
