"""What is taken where no method is named: what made the best students in our study.

``docs/auto.md`` has the evidence.
"""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.roles import ENCODER
from kd_dense.mm.presets.settings import Method, Preset

__all__ = ['AUTO']

STUDIED = 'ours: the best of what our study tried (docs/auto.md)'
BY_ROLE = 'ours: as for detectors with one stage, whose study is docs/auto.md; tap by role'

BY_ROLE_OF_FEATURES = 'ours: features as of segmenters, whose study is docs/auto.md; tap by role'


def _on(name: str, tap: str, loss: str, **fields: Any) -> dict[str, Any]:
    return {name: {'tap': tap, 'loss': {'type': loss, **fields}, 'share': 1.0}}


LOGITS = _on('cwd', 'logits', 'CWDLoss', temperature=2.0)
AUTO = Method(
    'the default: what made the best students of such a pair in our study',
    (
        Preset(
            models='any student of a teacher that has nothing but features',
            terms=_on('pkd', ENCODER, 'PKDLoss'),
            inherit=(),
            source=BY_ROLE_OF_FEATURES,
        ),
        Preset(
            models='segmenters',
            part='decode_head',
            terms={
                **_on('pkd', 'backbone', 'PKDLoss'),
                'cwd': {**LOGITS['cwd'], 'optional': True},
            },
            inherit=(),
            source=STUDIED,
        ),
        Preset(
            models='detectors with region proposals',
            part='roi_head',
            terms=_on('cwd', 'neck', 'CWDLoss'),
            inherit=('neck', 'rpn_head', 'roi_head'),
            source=BY_ROLE,
        ),
        Preset(
            models='other detectors with a neck',
            part='neck',
            terms=_on('cwd', 'neck', 'CWDLoss'),
            inherit=('neck', 'bbox_head', 'mask_head'),
            source=STUDIED,
        ),
        Preset(
            models='other models with a backbone',
            terms=_on('pkd', 'backbone', 'PKDLoss'),
            inherit=(),
            source=BY_ROLE,
        ),
    ),
)
"""The default: its settings, as those of other methods."""
