"""Teachers from elsewhere, of the smallest sizes, and random."""

from typing import Any

from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vit(**others: Any) -> dict[str, Any]:
    """A vision transformer of timm with a class token and four registers."""
    small = dict(depth=2, embed_dim=16, num_heads=2, reg_tokens=4)
    return dict(type='timm', model='vit_tiny_patch16_224', pretrained=False, **{**small, **others})


def convnext(**others: Any) -> dict[str, Any]:
    """A ConvNeXt of timm: four maps, of strides 4 to 32."""
    small = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    return dict(type='timm', model='convnext_atto', checkpoint=None, **{**small, **others})


def _plain(patch: int, **others: Any) -> dict[str, Any]:
    return dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=4 * patch,
        patch_size=patch,
        **others,
    )


_SWIN = dict(
    model_type='swin', embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2,
    image_size=32, out_features=['stage1', 'stage2', 'stage3', 'stage4'],
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = dict(
    dinov2=_plain(14),
    dinov3_vit=_plain(16, num_register_tokens=4),
    clip=dict(vision_config=_plain(16)),
    swin={k: v for k, v in _SWIN.items() if k not in ('model_type', 'out_features')},
    segformer=dict(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
    ),
    sam=dict(
        vision_config=dict(
            hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2,
            image_size=64, patch_size=16, window_size=2, global_attn_indexes=[1], mlp_dim=16,
        )
    ),
    mask2former=dict(
        backbone_config=_SWIN, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=1, encoder_feedforward_dim=32,
        dim_feedforward=32,
    ),
)  # fmt: skip


def of_transformers(kind: str, **others: Any) -> dict[str, Any]:
    """A model of transformers, of a config."""
    return dict(
        type='transformers',
        config=dict(model_type=kind, **CONFIGS[kind]),
        mean=MEAN,
        std=STD,
        **{'checkpoint': None, **others},
    )


def module(net: nn.Module | None = None, **others: Any) -> dict[str, Any]:
    """A net of a user's own."""
    patches = nn.Conv2d(3, 8, 16, stride=16) if net is None else net
    return {**dict(module=patches, mean=MEAN, std=STD, size_divisor=16), **others}
