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
    terms={
        f'embed{stage}': dict(
            tap=f'backbone.layers.{stage}.0',
            loss=dict(type='FitNetsLoss', weight=weight),
            adapter=dict(type='Adapter', always=True))
        for stage, weight in enumerate((0.1, 0.1, 0.5, 1.0))})
