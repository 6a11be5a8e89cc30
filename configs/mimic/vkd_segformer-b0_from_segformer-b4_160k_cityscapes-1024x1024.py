"""VkD on the last map of the backbone of SegFormer-B0.

Source: the weight of the authors for a detector, ViDT; nobody published this pair.
"""
_base_ = [
    '../_base_/kd_dense.py', 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py']
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher='mmseg::segformer/segformer_mit-b4_8xb1-160k_cityscapes-1024x1024.py',
    terms=dict(
        vkd=dict(
            tap='backbone[-1]',
            loss=dict(type='VkDLoss', weight=1.0),
            adapter=dict(type='Adapter', orthogonal=True))))
