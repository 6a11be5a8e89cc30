"""FGD: features of the pyramid, with a weight for each of its four parts."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import P2_TO_P5, P3_TO_P5, P3_TO_P7, Method, Preset, Sums

__all__ = ['BY_SHARE', 'METHODS', 'SUMS']


def _on(tap: str, *weights: float, temperature: float = 0.5) -> dict[str, Any]:
    names = ('foreground', 'background', 'attention', 'relation')
    loss = dict(type='FGDLoss', temperature=temperature, **dict(zip(names, weights, strict=True)))
    return {'fgd': {'tap': tap, 'loss': loss}}


METHODS = {
    'fgd': Method(
        'features, told apart by boxes and attention, and their global relation',
        (
            Preset(
                models='YOLOX, RTMDet',
                part='neck.out_convs',
                terms=_on('neck', 2e-3, 1e-3, 1e-3, 1e-5),
                inherit=(),
                source='authors: YOLOX-m from YOLOX-l',
                layout=P3_TO_P5,
            ),
            Preset(
                models='RepPoints',
                part='bbox_head',
                kinds=('RepPointsHead',),
                terms=_on('neck.fpn_convs.*.conv', 1.6e-3, 8e-4, 8e-4, 8e-6),
                inherit=('neck', 'bbox_head'),
                source='authors: RepPoints',
                layout=P3_TO_P7,
            ),
            Preset(
                models='FCOS and detectors derived from it',
                part='bbox_head',
                kinds=('FCOSHead',),
                terms=_on('neck', 1.6e-3, 8e-4, 8e-4, 8e-6, temperature=0.8),
                inherit=('neck', 'bbox_head'),
                source='authors: FCOS',
                layout=P3_TO_P7,
            ),
            Preset(
                models='SOLO, SOLOv2',
                part='mask_head',
                kinds=('SOLOHead',),
                terms=_on('neck[:4]', 1e-3, 5e-4, 5e-4, 5e-6),
                inherit=('neck', 'mask_head'),
                source='authors: SOLO',
                layout=P2_TO_P5,
            ),
            Preset(
                models='detectors with region proposals',
                part='roi_head',
                terms=_on('neck[:4]', 5e-5, 2.5e-5, 5e-5, 5e-7),
                inherit=('neck', 'rpn_head', 'roi_head'),
                source='authors: Faster R-CNN and Mask R-CNN',
                layout=P2_TO_P5,
            ),
            Preset(
                models='other detectors with a neck',
                terms=_on('neck', 1e-3, 5e-4, 5e-4, 5e-6),
                inherit=('neck', 'bbox_head'),
                source='authors: RetinaNet and GFL',
                layout=P3_TO_P7,
            ),
        ),
    ),
}

SUMS: dict[str, Sums] = {
    'FGDLoss': dict(
        foreground=lambda m: m.channels,
        background=lambda m: m.channels,
        attention=lambda m: m.positions + m.channels,
        relation=lambda m: m.positions * m.channels,
    ),
}
# Features of any size are attended to alike (docs/methods/fgd.md).
BY_SHARE: dict[str, dict[str, Any]] = {
    'FGDLoss': dict(temperature=2.0, relative_temperature=True),
}
