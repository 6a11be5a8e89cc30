"""SKD complete: pixel-wise, pair-wise and holistic, with the authors' weights.

Source: `run_train_val.sh` and the defaults of `utils/train_options.py` in the authors'
structure_knowledge_distillation. They train 40k iterations on crops of 512x512, and the critic
with SGD where CriticHook has Adam; see README.md.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
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
        holistic=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='HolisticLoss', weight=0.1, kind='wgan-gp', gradient_penalty=10.0))))
