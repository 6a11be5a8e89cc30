"""SKD: all three parts on segmenters, the pair-wise one alone on detectors."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import P3_TO_P7, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']


def _pair(tap: str) -> dict[str, Any]:
    return {'pair': {'tap': tap, 'loss': {'type': 'PairWiseLoss', 'weight': 0.5}}}


def _all(feature: str) -> dict[str, Any]:
    return {
        'pixel': {'tap': 'logits', 'loss': {'type': 'PixelWiseLoss', 'weight': 10.0}},
        **_pair(feature),
        'holistic': {'tap': 'logits', 'loss': {'type': 'HolisticLoss', 'weight': 0.1}},
    }


METHODS = {
    'skd': Method(
        'logits per pixel, how alike the regions are, and a critic (detectors: the second)',
        (
            Preset(
                models='segmenters with class logits and a bottleneck',
                part='decode_head.bottleneck',
                terms=_all('decode_head.bottleneck'),
                inherit=(),
                source='authors, run_train_val.sh: PSPNet on Cityscapes',
            ),
            Preset(
                models='other segmenters with class logits',
                terms=_all('backbone[-1]'),
                inherit=(),
                source="authors, run_train_val.sh; the pair-wise part on the backbone's last map",
            ),
            Preset(
                models='detectors with a neck',
                terms=_pair('neck'),
                inherit=(),
                source='the pair-wise part alone, with the weight for segmentation',
                layout=P3_TO_P7,
            ),
        ),
    ),
}

SUMS: dict[str, Sums] = {'PairWiseLoss': dict(weight=lambda m: 1)}
