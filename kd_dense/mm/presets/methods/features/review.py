"""Review: maps compared with what coarser ones know, and patch embeddings."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import P3_TO_P7, Layout, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

P2_TO_P6 = Layout(256, (4, 8, 16, 32, 64))
# Weights of the four stages, and the maps of SegFormer-B2 that they belong to.
STAGES = (0.1, 0.1, 0.5, 1.0)


def _review(tap: str) -> dict[str, Any]:
    return {'review': {'tap': tap, 'loss': {'type': 'ReviewKDLoss', 'weight': 1.0}}}


def _embeddings() -> dict[str, Any]:
    adapter = {'type': 'Adapter', 'always': True}
    return {
        f'embed{stage}': {
            'tap': f'backbone.layers.{stage}.0',
            'loss': {'type': 'FitNetsLoss', 'weight': weight},
            'adapter': adapter,
        }
        for stage, weight in enumerate(STAGES)
    }


METHODS = {
    'reviewkd': Method(
        'features, each level together with what coarser ones know',
        (
            Preset(
                models='detectors with region proposals',
                part='roi_head',
                terms=_review('neck'),
                inherit=(),
                source='authors: Faster R-CNN R50 from R101',
                layout=P2_TO_P6,
            ),
            Preset(
                models='other detectors with a neck',
                terms=_review('neck'),
                inherit=(),
                source='authors: RetinaNet R50 from R101',
                layout=P3_TO_P7,
            ),
            Preset(
                models='models without a neck',
                terms=_review('backbone'),
                inherit=(),
                source='weight of TransKD, which has another fusion, for SegFormer; width of the '
                'authors for detectors',
            ),
        ),
    ),
    'pea': Method(
        'patch embeddings of a SegFormer, stage by stage',
        (
            Preset(
                models='models with a mix transformer',
                part='backbone',
                kinds=('MixVisionTransformer',),
                terms=_embeddings(),
                inherit=(),
                source='authors of TransKD: SegFormer-B0 from B2, one of its parts',
            ),
        ),
    ),
}

# Means over maps, added up.
SUMS: dict[str, Sums] = {'ReviewKDLoss': dict(weight=lambda m: 1)}
