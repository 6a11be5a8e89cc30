"""The direction of DINOv3's features, a foundation model's, for the backbone of RetinaNet R50.

Source: ours, what the preset `cosine` chooses; RT-DETRv4 learns so from a larger DINOv3.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='timm::vit_small_patch16_dinov3.lvd1689m',
    terms=dict(
        cosine=dict(
            tap=dict(student='backbone[2]', teacher='backbone'),
            loss=dict(type='CosineLoss'),
            share=1.0)))
