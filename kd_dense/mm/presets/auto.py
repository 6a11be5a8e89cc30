"""What is taken where no method is named: what made the best students in our study.

``docs/methods/auto.md`` shows the evidence.
"""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import P2_TO_P5, P3_TO_P7, Method, Preset

__all__ = ['AUTO']

SOURCE = 'ours: the best of our study (docs/results/study.md)'


def _pkd(tap: str, weight: float) -> dict[str, Any]:
    return {'tap': tap, 'loss': {'type': 'PKDLoss', 'weight': weight}}


AUTO = Method(
    'the default: what made the best students of such a pair in our study',
    (
        Preset(
            models='segmenters',
            part='decode_head',
            terms={
                'pkd': _pkd('backbone', 3.0),
                'dist': {
                    'tap': 'logits',
                    'loss': {'type': 'DISTLoss', 'weight': 1.0},
                    'optional': True,
                },
            },
            inherit=(),
            source=SOURCE,
        ),
        Preset(
            models='detectors with region proposals',
            part='roi_head',
            terms={'pkd': _pkd('neck[:4]', 6.0)},
            inherit=('neck', 'rpn_head', 'roi_head'),
            source=SOURCE,
            layout=P2_TO_P5,
        ),
        Preset(
            models='other detectors with a neck',
            part='neck',
            terms={'pkd': _pkd('neck', 10.0)},
            inherit=('neck', 'bbox_head', 'mask_head'),
            source=SOURCE,
            layout=P3_TO_P7,
        ),
        Preset(
            models='other models with a backbone',
            terms={'pkd': _pkd('backbone', 10.0)},
            inherit=(),
            source=SOURCE,
            layout=P3_TO_P7,
        ),
    ),
)
