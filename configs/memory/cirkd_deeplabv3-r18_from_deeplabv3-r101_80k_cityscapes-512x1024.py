"""CIRKD on DeepLabV3 R18: class logits, the images of the batch, and a memory.

Source: the script of the authors' repository (winycg/CIRKD) for this pair, which trains for 40k
iterations of 16 images, with a learning rate of 0.02, and has a memory of 20000 pixels a class.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        kd=dict(tap='decode_head.conv_seg', loss=dict(type='KDLoss', weight=1.0)),
        images=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='CrossImageLoss', weight=1.0, temperature=0.1)),
        memory=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='MemoryLoss', pixels=0.1, regions=0.1, temperature=0.1))))
