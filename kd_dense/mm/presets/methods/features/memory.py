"""Memory: CIRKD, pixels contrasted with those of other images."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums, for_segmenters

__all__ = ['METHODS', 'SUMS']


def _cirkd(tap: str, **pool: int) -> dict[str, Any]:
    return {
        'kd': {'tap': 'logits', 'loss': {'type': 'KDLoss', 'weight': 1.0}, 'optional': True},
        'images': {
            'tap': tap,
            'loss': {'type': 'CrossImageLoss', 'weight': 1.0, 'temperature': 0.1, **pool},
        },
        'memory': {
            'tap': tap,
            'loss': {
                'type': 'MemoryLoss',
                'pixels': 0.1,
                'regions': 0.1,
                'temperature': 0.1,
                **pool,
            },
        },
    }


SOURCE = 'authors: DeepLabV3 and PSPNet on Cityscapes; a tenth of their memory of pixels'
HEAD, OTHER = for_segmenters(_cirkd, SOURCE)
METHODS = {
    'cirkd': Method(
        'what each position is like in the batch and in a memory; classes of each position',
        (
            HEAD,
            Preset(
                models='SegFormer',
                part='decode_head.fusion_conv',
                terms=_cirkd('decode_head.fusion_conv', pool=2),
                inherit=(),
                source=f'{SOURCE}; tap by role, pooled from stride 4 to their 8',
            ),
            OTHER,
        ),
    ),
}

# Means over positions.
SUMS: dict[str, Sums] = {}
