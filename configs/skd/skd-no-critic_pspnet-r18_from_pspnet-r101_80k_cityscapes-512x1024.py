"""SKD without its holistic part: no critic, and less time and memory.

Source: `run_train_val.sh` of the authors' structure_knowledge_distillation with
`is_ho_use=False`; the row "+Pi+Pa" of their results.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        pixel=dict(tap='decode_head.conv_seg', loss=dict(type='PixelWiseLoss', weight=10.0)),
        pair=dict(
            tap='decode_head.bottleneck', loss=dict(type='PairWiseLoss', weight=0.5, scale=0.5))))
