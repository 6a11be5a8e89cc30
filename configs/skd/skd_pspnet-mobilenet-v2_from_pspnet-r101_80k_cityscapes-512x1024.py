"""SKD complete on a MobileNetV2, with the weights that the authors gave their ResNet-18.

Source: `run_train_val.sh` of the authors' structure_knowledge_distillation for the settings;
this pair of models is not theirs.
"""
_base_ = [
    '../_base_/kd_dense.py',
    'mmseg::mobilenet_v2/mobilenet-v2-d8_pspnet_4xb2-80k_cityscapes-512x1024.py']
custom_hooks = [dict(type='kd_dense.CriticHook')]
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        pixel=dict(tap='decode_head.conv_seg', loss=dict(type='PixelWiseLoss', weight=10.0)),
        pair=dict(
            tap='decode_head.bottleneck', loss=dict(type='PairWiseLoss', weight=0.5, scale=0.5)),
        holistic=dict(tap='decode_head.conv_seg', loss=dict(
            type='HolisticLoss', weight=0.1, kind='wgan-gp', gradient_penalty=10.0))))
