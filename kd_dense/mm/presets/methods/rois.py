"""RoI heads: class logits on the regions that the student has sampled."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

STAGES = 3  # of a cascade; one that has fewer does without


def _on(name: str, stage: int | None = None, **loss: Any) -> dict[str, Any]:
    head = 'roi_head.bbox_head' + ('' if stage is None else f'.{stage}')
    return {name: {'tap': f'{head}.fc_cls', 'shared_rois': True, 'loss': loss}}


def _stage_by_stage(name: str, **loss: Any) -> dict[str, Any]:
    terms: dict[str, Any] = {}
    for stage in range(STAGES):
        terms |= _on(f'{name}_{stage}', stage, **loss)
        if stage:
            terms[f'{name}_{stage}']['optional'] = True
    return terms


def _presets(name: str, source: str, **loss: Any) -> tuple[Preset, ...]:
    return (
        Preset(
            models='Cascade R-CNN',
            part='roi_head.bbox_head.0.fc_cls',
            terms=_stage_by_stage(name, **loss),
            inherit=(),
            source='settings of the authors for Faster R-CNN, on each stage',
        ),
        Preset(
            models='detectors with region proposals',
            part='roi_head.bbox_head.fc_cls',
            terms=_on(name, **loss),
            inherit=(),
            source=source,
        ),
    )


DKD = dict(type='DKDLoss', weight=1.0, alpha=1.0, beta=0.25, temperature=1.0)
DIST = dict(type='DISTLoss', weight=1.0)
METHODS = {
    'roi_dkd': Method(
        'the true class of a region, and the others among themselves',
        _presets('dkd', 'authors, mdistiller: Faster R-CNN', **DKD),
    ),
    'roi_dist': Method(
        'correlations of probabilities: of classes in a region, of regions for a class',
        _presets(
            'dist', 'authors: Faster R-CNN, from the first stage of a Cascade Mask R-CNN', **DIST
        ),
    ),
}

# Nothing is summed over regions: all are means.
SUMS: dict[str, Sums] = {}
