"""SAD between the four stages of PSPNet's backbone, without a teacher.

Source: weight, pairs of stages and schedule of the authors, who train ENet and ResNets on lanes: it
counts in the last third of the training alone. mmseg's zoo has no ENet and no lanes: this is nearest.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=None,
    terms={
        f'sad{stage}': dict(
            tap=dict(student=f'backbone[{stage - 5}]', teacher=f'backbone[{stage - 4}]'),
            loss=dict(type='SADLoss', weight=0.1),
            schedule=dict(start=2 / 3, by_share=True))
        for stage in (1, 2, 3)})
