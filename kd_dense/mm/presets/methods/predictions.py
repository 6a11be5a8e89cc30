"""What dense heads predict: BCKD, ADL."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

# Heads whose assignment of objects can be read (kd_dense.mm.batches.head_targets).
ASSIGNING = ('ATSSHead', 'FCOSHead', 'GFLHead', 'RetinaHead', 'RTMDetHead')


def _on_head(name: str, kind: str, **loss: Any) -> dict[str, Any]:
    return {name: {'tap': 'bbox_head', 'loss': {'type': kind, **loss}}}


METHODS = {
    'bckd': Method(
        'classes, each against none, and decoded boxes of dense heads',
        (
            Preset(
                models='GFL',
                part='bbox_head',
                kinds=('GFLHead',),
                terms=_on_head('bckd', 'BCKDLoss', class_weight=1.0, box_weight=4.0),
                inherit=(),
                source='authors: GFL',
            ),
            Preset(
                models='ATSS, FCOS, RetinaNet, RTMDet',
                part='bbox_head',
                kinds=ASSIGNING,
                terms=_on_head('bckd', 'BCKDLoss', class_weight=1.0, box_weight=4.0),
                inherit=(),
                source='weights of the authors for GFL',
            ),
        ),
    ),
    'adl': Method(
        'classes of dense heads, each against none, those that are hard to learn the most',
        (
            Preset(
                models='RetinaNet',
                part='bbox_head',
                kinds=('RetinaHead',),
                terms=_on_head('adl', 'ADLLoss', weight=1.0, alpha=0.5, gamma=2.0),
                inherit=(),
                source='authors: RetinaNet',
            ),
            Preset(
                models='ATSS, FCOS, GFL, RTMDet',
                part='bbox_head',
                kinds=ASSIGNING,
                terms=_on_head('adl', 'ADLLoss', weight=1.0, alpha=0.5, gamma=2.0),
                inherit=(),
                source='settings of the authors for RetinaNet',
            ),
        ),
    ),
}

# Sums over priors and classes, divided by the positives, whatever the number of levels.
SUMS: dict[str, Sums] = {}
