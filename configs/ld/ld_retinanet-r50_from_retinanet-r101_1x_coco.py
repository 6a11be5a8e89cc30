"""LD on RetinaNet: its teacher has to be trained first.

Source: `ld_retina_r50_1x.py` of the authors, whose weights belong to a softmax over the bins of
all four sides together; LD on the VLR weighs 0.03 of LD on positives.
"""
_base_ = ['../_base_/kd_dense.py', './retinanet-distribution_r50_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::ld/retinanet-distribution_r101_ms-2x_coco.py',
        checkpoint='work_dirs/retinanet-distribution_r101_ms-2x_coco/epoch_24.pth'),
    terms=dict(
        ld=dict(
            tap='bbox_head',
            loss=dict(
                type='LDLoss', main_weight=5.0, joint_sides=True, vlr_weight=0.15,
                vlr_factor=4.0, vlr_on_positives=False, kd_weight=10.0, kd_temperature=8.0))))
