"""IntRA-KD from PSPNet R101 to ERFNet: the classes of Cityscapes are its regions.

The end of ERFNet's encoder has the stride of PSPNet's features, 8, but 128 channels for 512.
Source: the kernel is that of the authors' sketch. Taps and weights are ours: the authors' were
not at hand, and they did not train on Cityscapes.
"""
_base_ = ['../_base_/kd_dense.py', 'mmseg::erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        affinity=dict(tap=dict(student='backbone.encoder.15', teacher='decode_head.bottleneck'),
                      loss=dict(type='IntRALoss', kernel=11, weight=1.0)),
        attention=dict(tap=dict(student='backbone.encoder.15', teacher='decode_head.bottleneck'),
                       loss=dict(type='AttentionMapLoss', weight=1.0)),
        pixels=dict(tap='decode_head.conv_seg',
                    loss=dict(type='CWDLoss', norm='spatial', weight=1.0, temperature=1.0))))
