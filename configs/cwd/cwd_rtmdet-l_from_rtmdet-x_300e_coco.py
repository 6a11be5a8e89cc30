"""CWD on the three maps in front of the neck's last norms, each standardised over the batch.

Source: MMYOLO's `kd_l_rtmdet_x_neck_300e_coco.py`. Distillation ends where the mosaics end, 20
epochs before the training.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::rtmdet/rtmdet_x_8xb32-300e_coco.py',
    terms=dict(
        cwd=dict(
            tap='neck.out_convs.*.conv',
            loss=dict(type='CWDLoss', weight=1.0, temperature=1.0, standardise=True),
            schedule=dict(stop=14 / 15, by_share=True))))
