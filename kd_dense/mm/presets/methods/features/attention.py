"""Attention: where all channels together are active, in two models or in stages of one."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums, for_segmenters

__all__ = ['METHODS', 'SUMS']


def _at(tap: str) -> dict[str, Any]:
    return {'at': {'tap': tap, 'loss': {'type': 'ATLoss', 'weight': 10000.0}}}


# In the last third of the training: before, no stage knows where to look (docs/results/study.md).
LATE = {'start': 2 / 3, 'by_share': True}
STAGES = {
    f'sad{stage}': {
        'tap': {'student': f'backbone[{stage - 5}]', 'teacher': f'backbone[{stage - 4}]'},
        'loss': {'type': 'SADLoss', 'weight': 0.1},
        'schedule': LATE,
    }
    for stage in (1, 2, 3)
}
METHODS = {
    'at': Method(
        'where all channels together are active',
        for_segmenters(_at, 'CIRKD: DeepLabV3 on Cityscapes, beside kd'),
    ),
    'sad': Method(
        'where each stage of the student is active, and the next one; without a teacher',
        (
            Preset(
                models='segmenters with four stages, without a teacher',
                part='decode_head',
                alone=True,
                terms=STAGES,
                inherit=(),
                source='weight and schedule of the authors for ENet on lanes; by role',
            ),
        ),
    ),
}

# Published on one map.
SUMS: dict[str, Sums] = {}
