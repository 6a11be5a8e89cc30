"""IntRA-KD for road markings: the task, the student and the kind of teacher of the paper.

Train the teacher first, with `pspnet-r101_apolloscape.py`: none has been published that mmseg
can load. Source: data and schedule from the authors' scripts (see `apolloscape.py`), the kernel
from their sketch; taps and weights are ours, because the authors' were not at hand.
"""
_base_ = ['../_base_/kd_dense.py', 'erfnet_apolloscape.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(
        config='kd_dense::intrakd/pspnet-r101_apolloscape.py',
        checkpoint='work_dirs/pspnet-r101_apolloscape/epoch_24.pth'),
    terms=dict(
        affinity=dict(tap=dict(student='backbone.encoder.15', teacher='decode_head.bottleneck'),
                      loss=dict(type='IntRALoss', kernel=11, weight=1.0)),
        attention=dict(tap=dict(student='backbone.encoder.15', teacher='decode_head.bottleneck'),
                       loss=dict(type='AttentionMapLoss', weight=1.0)),
        pixels=dict(tap='decode_head.conv_seg',
                    loss=dict(type='CWDLoss', norm='spatial', weight=1.0, temperature=1.0))))
