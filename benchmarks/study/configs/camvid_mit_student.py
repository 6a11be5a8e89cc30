"""A SegFormer with one block in each stage, from scratch."""

_base_ = 'camvid_student.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MixVisionTransformer',
        embed_dims=16,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.0,
    ),
    decode_head=dict(in_channels=[16, 32, 64, 128]),
)
