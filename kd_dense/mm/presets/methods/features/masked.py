"""Masked imitation: features where the teacher is sure, on objects, or near them."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Layout, Method, Preset, Sums

__all__ = ['METHODS', 'SHARES', 'SUMS']

P2_TO_P6 = Layout(256, (4, 8, 16, 32, 64))
# The last map of a VGG16, which has no neck.
C4 = Layout(512, (16,))


def _frs(scores: str) -> dict[str, Any]:
    loss = {'type': 'FRSLoss', 'features': 0.002, 'classes': 0.1, 'scores': scores}
    return {'frs': {'tap': 'neck', 'loss': loss, 'schedule': {'warmup': 500}}}


def _defeat() -> dict[str, Any]:
    loss = {'type': 'DeFeatLoss', 'objects': 4.0, 'background': 16.0}
    return {'defeat': {'tap': 'neck', 'loss': loss, 'schedule': {'warmup': 2000}}}


def _fgfi(tap: str) -> dict[str, Any]:
    return {'fgfi': {'tap': tap, 'loss': {'type': 'FGFILoss', 'weight': 0.01}}}


METHODS = {
    'frs': Method(
        'features and classes, where the teacher is sure of an object',
        (
            Preset(
                models='detectors with region proposals',
                part='rpn_head',
                terms=_frs('rpn_head'),
                inherit=(),
                source='United Perception: Faster R-CNN R50 from R152',
                layout=P2_TO_P6,
            ),
            Preset(
                models='dense detectors',
                part='bbox_head',
                kinds=('BaseDenseHead',),
                terms=_frs('bbox_head'),
                inherit=(),
                source='weights of United Perception for Faster R-CNN; the paper names none',
                layout=P2_TO_P6,
            ),
        ),
    ),
    'defeat': Method(
        'features of objects and of the background, each a mean of its own',
        (
            Preset(
                models='detectors with a neck',
                terms=_defeat(),
                inherit=(),
                source='United Perception: Faster R-CNN R50 from R152, without its term on the '
                'backbone',
                layout=P2_TO_P6,
            ),
        ),
    ),
    'fgfi': Method(
        'features near objects, as anchors tell',
        (
            Preset(
                models='detectors with anchors and a neck',
                terms=_fgfi('neck'),
                inherit=(),
                source='weight of the authors for Faster R-CNN with VGG16; tap by role',
                layout=C4,
            ),
            Preset(
                models='detectors with anchors, without a neck',
                terms=_fgfi('backbone[-1]'),
                inherit=(),
                source='authors: Faster R-CNN with VGG16',
                layout=C4,
            ),
        ),
    ),
}

# As strong as the task it made a student worse, and a tenth as strong better
# (docs/methods/masked.md).
SHARES = {'FGFILoss': 0.1}

# Sums over channels, level by level, and means; those of the classes are sums over class logits.
SUMS: dict[str, Sums] = {
    'FRSLoss': dict(features=lambda m: m.channels),
    'DeFeatLoss': {},
    'FGFILoss': dict(weight=lambda m: m.channels),
}
