"""Memory: CIRKD, pixels contrasted with those of other images."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']


def _cirkd(tap: str) -> dict[str, Any]:
    return {
        'kd': {'tap': 'logits', 'loss': {'type': 'KDLoss', 'weight': 1.0}, 'optional': True},
        'images': {
            'tap': tap,
            'loss': {'type': 'CrossImageLoss', 'weight': 1.0, 'temperature': 0.1},
        },
        'memory': {
            'tap': tap,
            'loss': {'type': 'MemoryLoss', 'pixels': 0.1, 'regions': 0.1, 'temperature': 0.1},
        },
    }


SOURCE = 'authors: DeepLabV3 and PSPNet on Cityscapes; a tenth of their memory of pixels'
METHODS = {
    'cirkd': Method(
        'what each position is like in the batch and in a memory; classes of each position',
        (
            Preset(
                models='segmenters with a bottleneck',
                part='decode_head.bottleneck',
                terms=_cirkd('decode_head.bottleneck'),
                inherit=(),
                source=SOURCE,
            ),
            Preset(
                models='SegFormer',
                part='decode_head.fusion_conv',
                terms=_cirkd('decode_head.fusion_conv'),
                inherit=(),
                source=f'{SOURCE}; tap by role',
            ),
            Preset(
                models='other segmenters',
                part='decode_head',
                terms=_cirkd('backbone[-1]'),
                inherit=(),
                source=f"{SOURCE}; on the backbone's last map",
            ),
        ),
    ),
}

# Means over positions.
SUMS: dict[str, Sums] = {}
