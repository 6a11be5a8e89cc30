"""Attention: where all channels together are active."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

BOTTLENECK = 'decode_head.bottleneck'


def _at(tap: str) -> dict[str, Any]:
    return {'at': {'tap': tap, 'loss': {'type': 'ATLoss', 'weight': 10000.0}}}


CIRKD = 'CIRKD: DeepLabV3 on Cityscapes, beside kd'
METHODS = {
    'at': Method(
        'where all channels together are active',
        (
            Preset(
                models='segmenters with a bottleneck',
                part=BOTTLENECK,
                terms=_at(BOTTLENECK),
                inherit=(),
                source=CIRKD,
            ),
            Preset(
                models='other segmenters',
                part='decode_head',
                terms=_at('backbone[-1]'),
                inherit=(),
                source=f"{CIRKD}; on the backbone's last map",
            ),
        ),
    ),
}

# Published on one map.
SUMS: dict[str, Sums] = {}
