"""IntRA-KD: areas of classes and attention on a feature, class distributions on the logits."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']


def _on(feature: str) -> dict[str, Any]:
    pixels = {'type': 'CWDLoss', 'norm': 'spatial'}
    return {
        'affinity': {'tap': feature, 'loss': {'type': 'IntRALoss'}},
        'attention': {'tap': feature, 'loss': {'type': 'AttentionMapLoss'}},
        'pixels': {'tap': 'logits', 'loss': pixels},
    }


METHODS = {
    'intrakd': Method(
        'moments of features by class, attention, and class distributions',
        (
            Preset(
                models='segmenters with class logits and a bottleneck',
                part='decode_head.bottleneck',
                terms=_on('decode_head.bottleneck'),
                inherit=(),
                source="ours: the authors' settings are not public",
            ),
            Preset(
                models='other segmenters with class logits',
                terms=_on('backbone[-1]'),
                inherit=(),
                source="ours: the authors' settings are not public",
            ),
        ),
    ),
}

# Nothing is summed over maps: there is one, and the losses are means over it.
SUMS: dict[str, Sums] = {}
