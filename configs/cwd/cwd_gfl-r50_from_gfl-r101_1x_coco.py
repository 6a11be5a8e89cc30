"""CWD on the class logits of all levels.

Source: `cwd_cls_head_gfl_r101_fpn_gfl_r50_fpn_1x_coco.py` of mmrazor 0.x. (The file of that
name in mmrazor 1.x distils the pyramid, and the published result is not its.)
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    terms=dict(
        cwd=dict(
            tap='bbox_head.gfl_cls',
            loss=dict(type='CWDLoss', weight=5.0, temperature=1.0))))
