"""Patch embeddings of SegFormer-B0, as in TransKD.

Source: the weights of the authors' script (RuipingL/TransKD) for this pair, where it stands beside a
fusion of the four maps.
"""
_base_ = [
    '../_base_/kd_dense.py',
    'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
]
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py',
    terms=dict(
        embed0=dict(
            tap='backbone.layers.0.0',
            loss=dict(type='FitNetsLoss', weight=0.1),
            adapter=dict(type='Adapter', always=True)),
        embed1=dict(
            tap='backbone.layers.1.0',
            loss=dict(type='FitNetsLoss', weight=0.1),
            adapter=dict(type='Adapter', always=True)),
        embed2=dict(
            tap='backbone.layers.2.0',
            loss=dict(type='FitNetsLoss', weight=0.5),
            adapter=dict(type='Adapter', always=True)),
        embed3=dict(
            tap='backbone.layers.3.0',
            loss=dict(type='FitNetsLoss', weight=1.0),
            adapter=dict(type='Adapter', always=True))))
