"""DSD: relations of classes, and how attention moves between the last two stages.

Source: the weights that runs of the CIRKD repository have for this pair, which train 40k iterations
with batch 16, and compare the attention of the logits, too.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    terms=dict(
        dsd=dict(
            tap='decode_head.conv_seg',
            loss=dict(
                type='RelationLoss', weight=10.0, over='channels', rows='none',
                reduction='mean', values='places', temperature=4.0, pool=2)),
        psd=dict(tap='backbone[-2:]', loss=dict(type='AttentionChangeLoss', weight=1000.0))))
