"""Generation: the teacher's features from the student's, partly masked."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import P2_TO_P5, P3_TO_P7, Layout, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

# The last map of a dilated ResNet-101 or -50.
C5 = Layout(2048, (8,))


def _mgd(tap: str, weight: float, mask_ratio: float) -> dict[str, Any]:
    loss = {'type': 'MGDLoss', 'weight': weight, 'mask_ratio': mask_ratio}
    return {'mgd': {'tap': tap, 'loss': loss}}


def _af_dcd() -> dict[str, Any]:
    loss = {'type': 'AfDCDLoss', 'features': 2e-6, 'contrast': 5e-3}
    return {'af_dcd': {'tap': 'backbone[-1]', 'loss': loss}}


# What the authors have beside it, on class logits.
CWD = {'cwd': {'tap': 'logits', 'loss': {'type': 'CWDLoss', 'weight': 3.0, 'temperature': 4.0}}}
PIXELS = {'pixels': {'tap': 'logits', 'loss': {'type': 'CWDLoss', 'norm': 'spatial'}}}

METHODS = {
    'mgd': Method(
        'features, generated from masked ones; in segmenters with cwd on the logits',
        (
            Preset(
                models='segmenters with class logits',
                part='decode_head',
                terms={**_mgd('backbone[-1]', 2e-5, 0.75), **CWD},
                inherit=(),
                source='authors: PSPNet and DeepLabV3 on Cityscapes, crops of 512x512',
                layout=C5,
            ),
            Preset(
                models='other segmenters',
                part='decode_head',
                terms=_mgd('backbone[-1]', 2e-5, 0.75),
                inherit=(),
                source='authors: PSPNet and DeepLabV3 on Cityscapes, without CWD on class logits',
                layout=C5,
            ),
            Preset(
                models='RepPoints',
                part='bbox_head',
                kinds=('RepPointsHead',),
                terms=_mgd('neck.fpn_convs.*.conv', 2e-5, 0.65),
                inherit=('neck', 'bbox_head'),
                source='authors: RepPoints',
                layout=P3_TO_P7,
            ),
            Preset(
                models='SOLO, SOLOv2',
                part='mask_head',
                kinds=('SOLOHead',),
                terms=_mgd('neck[:4]', 2e-5, 0.65),
                inherit=('neck', 'mask_head'),
                source='authors: SOLO',
                layout=P2_TO_P5,
            ),
            Preset(
                models='detectors with region proposals',
                part='roi_head',
                terms=_mgd('neck[:4]', 5e-7, 0.45),
                inherit=(),
                source='authors: Faster R-CNN and Mask R-CNN',
                layout=P2_TO_P5,
            ),
            Preset(
                models='other detectors with a neck',
                terms=_mgd('neck', 2e-5, 0.65),
                inherit=('neck', 'bbox_head'),
                source='authors: RetinaNet',
                layout=P3_TO_P7,
            ),
            Preset(
                models='detectors without a neck',
                terms=_mgd('backbone', 2e-5, 0.65),
                inherit=(),
                source='weight of the authors for RetinaNet; tap by role',
                layout=P3_TO_P7,
            ),
        ),
    ),
    'af_dcd': Method(
        'as mgd, and a contrast of channels and places; pixel-wise on the logits',
        (
            Preset(
                models='segmenters with class logits',
                part='decode_head',
                terms={**_af_dcd(), **PIXELS},
                inherit=(),
                source='authors: DeepLabV3 on Cityscapes',
                layout=C5,
            ),
            Preset(
                models='other segmenters',
                part='decode_head',
                terms=_af_dcd(),
                inherit=(),
                source='authors: DeepLabV3 on Cityscapes, without the pixels of class logits',
                layout=C5,
            ),
        ),
    ),
}

# Sums over a map, but for the contrast, which is a mean over positions.
SUMS: dict[str, Sums] = {
    'MGDLoss': dict(weight=lambda m: m.positions * m.channels),
    'AfDCDLoss': dict(features=lambda m: m.positions * m.channels),
}
