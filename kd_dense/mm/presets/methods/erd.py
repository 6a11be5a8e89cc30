"""ERD: a dense head that learns new classes beside its teacher's."""

from __future__ import annotations

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

METHODS = {
    'erd': Method(
        "the teacher's strong responses to its classes, while the student learns new ones",
        (
            Preset(
                models='GFL with IncrementalGFLHead',
                part='bbox_head',
                kinds=('IncrementalGFLHead',),
                terms={
                    'erd': {
                        'tap': 'bbox_head',
                        'loss': {'type': 'ERDLoss', 'classes': 1.0, 'boxes': 0.25},
                    }
                },
                inherit=('backbone', 'neck', 'bbox_head'),
                source='authors: GFL',
            ),
        ),
    ),
}

# Means of what is selected, whatever the layout.
SUMS: dict[str, Sums] = {}
