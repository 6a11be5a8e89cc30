"""Queries: what decoders such as DETR's predict, paired."""

from __future__ import annotations

from kd_dense.mm.presets.settings import Layout, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

DEFORMABLE = Layout(256, (8, 16, 32, 64))
METHODS = {
    'detrdistill': Method(
        'classes and boxes of queries, in pairs that cost least; features where queries look',
        (
            Preset(
                models='DETR and detectors derived from it',
                part='bbox_head',
                kinds=('DETRHead',),
                terms={
                    'queries': {'tap': 'bbox_head', 'loss': {'type': 'QueryBoxLoss'}},
                    'features': {
                        'tap': 'neck',
                        'loss': {'type': 'QueryFeatureLoss', 'weight': 1.0},
                    },
                },
                inherit=(),
                source='authors: Deformable DETR on COCO',
                layout=DEFORMABLE,
            ),
        ),
    ),
}

SUMS: dict[str, Sums] = {'QueryFeatureLoss': dict(weight=lambda m: 1)}
