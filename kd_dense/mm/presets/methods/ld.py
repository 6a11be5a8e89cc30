"""LD: heads that predict distributions of box sides."""

from __future__ import annotations

from math import inf
from typing import Any

from kd_dense.mm.presets.settings import COCO, DOTA, Method, Preset, Sums

__all__ = ['BY_SHARE', 'METHODS', 'SUMS']


def _with(**loss: Any) -> dict[str, Any]:
    return {'ld': {'tap': 'bbox_head', 'loss': {'type': 'LDLoss', **loss, 'kd_weight': 10.0}}}


METHODS = {
    'ld': Method(
        'distributions of box sides and classes, at what the head assigns to objects',
        (
            Preset(
                models='GFL',
                part='bbox_head',
                kinds=('GFLHead',),
                terms=_with(),
                inherit=(),
                source='authors: GFL, classes, main region and valuable localization region',
                layout=COCO,
            ),
            Preset(
                models='ATSS with DistributionATSSHead',
                part='bbox_head',
                kinds=('DistributionATSSHead',),
                terms=_with(vlr_weight=0.0375, vlr_factor=4.0),
                inherit=(),
                source='authors: ATSS',
                layout=COCO,
            ),
            Preset(
                models='FCOS with DistributionFCOSHead',
                part='bbox_head',
                kinds=('DistributionFCOSHead',),
                terms=_with(region='inside', vlr_weight=0.0625, vlr_factor=4.0),
                inherit=(),
                source='authors: FCOS',
                layout=COCO,
            ),
            Preset(
                models='RetinaNet with DistributionRetinaHead',
                part='bbox_head',
                kinds=('DistributionRetinaHead',),
                terms=_with(
                    main_weight=5.0,
                    joint_sides=True,
                    vlr_weight=0.15,
                    vlr_factor=4.0,
                    vlr_on_positives=False,
                    kd_temperature=8.0,
                ),
                inherit=(),
                source='authors: RetinaNet',
                layout=COCO,
            ),
            Preset(
                models='Rotated RetinaNet with DistributionRotatedRetinaHead',
                part='bbox_head',
                kinds=('DistributionRotatedRetinaHead',),
                terms={
                    'ld': {
                        'tap': 'bbox_head',
                        'loss': {'type': 'RotatedLDLoss', 'kd_weight': 20.0},
                    }
                },
                inherit=(),
                source='authors: Rotated RetinaNet with GWD',
                layout=DOTA,
            ),
            Preset(
                models='Rotated FCOS with DistributionRotatedFCOSHead',
                part='bbox_head',
                kinds=('DistributionRotatedFCOSHead',),
                terms=_with(region='inside', vlr_weight=0.0625, vlr_factor=4.0),
                inherit=(),
                source="ours: the authors' for FCOS",
                layout=COCO,
            ),
        ),
    ),
}

# Sums over levels of divergences that are divided by the number of classes. A softmax over one
# class says nothing, and the loss refuses it: there the weight is divided by infinity.
SUMS: dict[str, Sums] = {
    loss: dict(kd_weight=lambda m: 1 / m.channels if m.channels > 1 else inf)
    for loss in ('LDLoss', 'RotatedLDLoss')
}
# The classes, as a softmax, pull a head of sigmoids away from its task (docs/methods/ld.md).
BY_SHARE: dict[str, dict[str, Any]] = {loss: dict(kd_weight=0.0) for loss in SUMS}
