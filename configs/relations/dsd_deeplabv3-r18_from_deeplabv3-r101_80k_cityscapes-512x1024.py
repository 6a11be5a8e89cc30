"""DSD's relations of classes, on the class logits.

Source: the weight that runs of the CIRKD repository have for this pair, which train 40k iterations with
batch 16, and compare attention beside it.
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
                reduction='mean', values='places', temperature=4.0, pool=2))))
