"""Prototypes: features by way of the centres of their classes."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

BOTTLENECK = 'decode_head.bottleneck'


def _ifvd(tap: str) -> dict[str, Any]:
    return {'ifvd': {'tap': tap, 'loss': {'type': 'IFVDLoss', 'weight': 200.0}}}


def _apd(tap: str) -> dict[str, Any]:
    loss = {'type': 'APDLoss', 'perspective': 10.0, 'centres': 10.0}
    logits = {'type': 'KDLoss', 'weight': 10.0, 'valid_only': False, 'per': 'entry'}
    return {
        'apd': {'tap': tap, 'loss': loss},
        'kd': {'tap': 'logits', 'loss': logits, 'optional': True},
    }


def _segmenters(make: Any, source: str) -> tuple[Preset, ...]:
    return (
        Preset(
            models='segmenters with a bottleneck',
            part=BOTTLENECK,
            terms=make(BOTTLENECK),
            inherit=(),
            source=source,
        ),
        Preset(
            models='other segmenters',
            part='decode_head',
            terms=make('backbone[-1]'),
            inherit=(),
            source=f"{source}; on the backbone's last map",
        ),
    )


METHODS = {
    'ifvd': Method(
        'how near each feature is to the centre of its class',
        _segmenters(_ifvd, 'authors: PSPNet on Cityscapes, one of three terms'),
    ),
    'apd': Method(
        'how near each feature is to the centres of all classes; and the logits',
        _segmenters(
            _apd, 'authors: PSPNet on Cityscapes and ADE20K, who enlarge the logits first'
        ),
    ),
}

# Nothing is summed over a map.
SUMS: dict[str, Sums] = {}
