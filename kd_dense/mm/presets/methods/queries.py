"""Queries: what decoders such as DETR's predict, paired."""

from __future__ import annotations

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

METHODS = {
    'detrdistill': Method(
        'classes and boxes of queries, in pairs that cost least',
        (
            Preset(
                models='DETR and detectors derived from it',
                part='bbox_head',
                kinds=('DETRHead',),
                terms={'queries': {'tap': 'bbox_head', 'loss': {'type': 'QueryBoxLoss'}}},
                inherit=(),
                source='authors: Deformable DETR on COCO',
            ),
        ),
    ),
}

# Sums over the layers of a decoder, of which published models have six as well.
SUMS: dict[str, Sums] = {}
