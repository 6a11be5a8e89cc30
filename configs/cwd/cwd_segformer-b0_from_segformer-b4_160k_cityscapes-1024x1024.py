"""CWD on the class logits. In the only published run of this pair, CWD hurt: see README.md.

Source: the logit weight and temperature of CIRKD's re-run for SegFormer, which added a
feature, a pixel-wise and an adversarial term, and trained 40k iterations.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::segformer/segformer_mit-b4_8xb1-160k_cityscapes-1024x1024.py',
    terms=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='CWDLoss', weight=0.3, temperature=4.0))))
