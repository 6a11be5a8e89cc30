"""Prototypes: features by way of the centres of their classes."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Sums, for_segmenters

__all__ = ['METHODS', 'SUMS']


def _ifvd(tap: str) -> dict[str, Any]:
    return {'ifvd': {'tap': tap, 'loss': {'type': 'IFVDLoss', 'weight': 200.0}}}


def _apd(tap: str) -> dict[str, Any]:
    loss = {'type': 'APDLoss', 'perspective': 10.0, 'centres': 10.0}
    logits = {'type': 'KDLoss', 'weight': 10.0, 'valid_only': False, 'per': 'entry'}
    return {
        'apd': {'tap': tap, 'loss': loss},
        'kd': {'tap': 'logits', 'loss': logits, 'optional': True},
    }


METHODS = {
    'ifvd': Method(
        'how near each feature is to the centre of its class',
        for_segmenters(_ifvd, 'authors: PSPNet on Cityscapes, one of three terms'),
    ),
    'apd': Method(
        'how near each feature is to the centres of all classes; and the logits',
        for_segmenters(
            _apd, 'authors: PSPNet on Cityscapes and ADE20K, who enlarge the logits first'
        ),
    ),
}

# Nothing is summed over a map.
SUMS: dict[str, Sums] = {}
