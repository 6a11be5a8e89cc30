"""Mimicry: features, position by position."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.roles import ENCODER
from kd_dense.mm.presets.settings import P2_TO_P5, P3_TO_P7, Layout, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

P3_TO_P6 = Layout(256, (8, 16, 32, 64))


def _fitnets(tap: str) -> dict[str, Any]:
    return {'fitnets': {'tap': tap, 'loss': {'type': 'FitNetsLoss', 'weight': 1.0}}}


def _pkd(tap: str, weight: float) -> dict[str, Any]:
    return {'pkd': {'tap': tap, 'loss': {'type': 'PKDLoss', 'weight': weight}}}


def _vkd(tap: str) -> dict[str, Any]:
    adapter = {'type': 'Adapter', 'orthogonal': True}
    return {'vkd': {'tap': tap, 'loss': {'type': 'VkDLoss', 'weight': 1.0}, 'adapter': adapter}}


def _foreign(name: str, loss: str, **fields: Any) -> Preset:
    """Of a teacher from elsewhere, whose maps no weight was published for."""
    term = {'tap': ENCODER, 'loss': {'type': loss}, 'share': 1.0, **fields}
    return Preset(
        models='any student of a teacher that has nothing but features',
        terms={name: term},
        inherit=(),
        source='ours: weight by share; its last map, and the one of the nearest stride',
    )


FITNETS = (
    _foreign('fitnets', 'FitNetsLoss'),
    Preset(
        models='segmenters',
        part='decode_head',
        terms=_fitnets('backbone[-1]'),
        inherit=(),
        source='weight of CIRKDv2 for DeepLabV3 on Cityscapes, one of its terms; tap by role',
    ),
    Preset(
        models='detectors with a neck',
        terms=_fitnets('neck'),
        inherit=(),
        source='authors of DIST: RetinaNet and Faster R-CNN, one of two terms',
        layout=P3_TO_P7,
    ),
    Preset(
        models='detectors without a neck',
        terms=_fitnets('backbone'),
        inherit=(),
        source='weight of the authors of DIST for pyramid features; tap by role',
        layout=P3_TO_P7,
    ),
)
PKD = (
    _foreign('pkd', 'PKDLoss'),
    Preset(
        models='segmenters',
        part='decode_head',
        terms=_pkd('backbone[-1]', 10.0),
        inherit=(),
        source='ours: the weight of the authors for one level of RetinaNet; tap by role',
    ),
    Preset(
        models='detectors with region proposals',
        part='roi_head',
        terms=_pkd('neck[:4]', 6.0),
        inherit=(),
        source='authors, in MMRazor: Faster R-CNN',
        layout=P2_TO_P5,
    ),
    Preset(
        models='other detectors with a neck',
        terms=_pkd('neck[:4]', 10.0),
        inherit=(),
        source='authors, in MMRazor: RetinaNet and RepPoints',
        layout=P3_TO_P6,
    ),
    Preset(
        models='detectors without a neck',
        terms=_pkd('backbone', 10.0),
        inherit=(),
        source='weight of the authors for pyramid features; tap by role',
        layout=P3_TO_P6,
    ),
)
VKD = (
    _foreign('vkd', 'VkDLoss', adapter={'type': 'Adapter', 'orthogonal': True}),
    Preset(
        models='segmenters',
        part='decode_head',
        terms=_vkd('backbone[-1]'),
        inherit=(),
        source='weight of the authors for ViDT on COCO; tap by role',
    ),
    Preset(
        models='detectors with a neck',
        terms=_vkd('neck'),
        inherit=(),
        source='weight of the authors for ViDT on COCO; tap by role',
    ),
    Preset(
        models='detectors without a neck',
        terms=_vkd('backbone'),
        inherit=(),
        source='weight of the authors for ViDT on COCO; tap by role',
    ),
)
COSINE = (
    _foreign('cosine', 'CosineLoss'),
    Preset(
        models='models with a backbone',
        terms={
            'cosine': {'tap': 'backbone[-1]', 'loss': {'type': 'CosineLoss', 'weight': 5.0}},
        },
        inherit=(),
        source='weight of RT-DETRv4-S and -M, whose teacher is DINOv3; tap by role',
    ),
)
FBKD = (
    Preset(
        models='detectors with region proposals',
        part='roi_head',
        terms={'fbkd': {'tap': 'neck[:4]', 'loss': {'type': 'FBKDLoss'}}},
        inherit=(),
        source='MMRazor, with the weights of the authors: Faster R-CNN',
    ),
)

METHODS = {
    'fitnets': Method('features as they are', FITNETS),
    'pkd': Method('features, each channel standardised over the batch', PKD),
    'vkd': Method('as pkd, behind an orthogonal layer, and large differences count less', VKD),
    'cosine': Method('the direction of features, as from a vision foundation model', COSINE),
    'fbkd': Method('features, their means, and relations of all positions', FBKD),
}

# Means over maps, added up.
SUMS: dict[str, Sums] = {
    'FitNetsLoss': dict(weight=lambda m: 1),
    'PKDLoss': dict(weight=lambda m: 1),
}
