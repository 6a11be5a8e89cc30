"""What dense heads predict: BCKD, ADL, CrossKD, PGD."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

# Heads whose assignment of objects can be read (kd_dense.mm.batches.head_targets).
RETINA = ('RetinaHead', 'RetinaSepBNHead')
ASSIGNING = ('ATSSHead', 'FCOSHead', 'GFLHead', *RETINA, 'RTMDetHead')


def _on_head(name: str, kind: str, **loss: Any) -> dict[str, Any]:
    return {name: {'tap': 'bbox_head', 'loss': {'type': kind, **loss}}}


def _crossed(at: int, **loss: Any) -> dict[str, Any]:
    terms = _on_head('crosskd', 'CrossKDLoss', **loss)
    terms['crosskd']['cross_at'] = at
    return terms


def _guided(alpha: float, topk: int = 30, temperature: float = 0.8) -> dict[str, Any]:
    common = dict(attention=0.0008, temperature=temperature, topk=topk)
    return {
        'pgd_classes': {
            'tap': 'cls_tower',
            'loss': dict(type='PGDClassLoss', foreground=alpha, background=alpha / 2, **common),
        },
        'pgd_boxes': {
            'tap': 'reg_tower',
            'loss': dict(type='PGDBoxLoss', foreground=round(1.6 * alpha, 3), **common),
        },
    }


METHODS = {
    'bckd': Method(
        'classes, each against none, and decoded boxes of dense heads',
        (
            Preset(
                models='GFL',
                part='bbox_head',
                kinds=('GFLHead',),
                terms=_on_head('bckd', 'BCKDLoss', class_weight=1.0, box_weight=4.0),
                inherit=(),
                source='authors: GFL',
            ),
            Preset(
                models='ATSS, FCOS, RetinaNet, RTMDet',
                part='bbox_head',
                kinds=ASSIGNING,
                terms=_on_head('bckd', 'BCKDLoss', class_weight=1.0, box_weight=4.0),
                inherit=(),
                source='weights of the authors for GFL',
            ),
        ),
    ),
    'crosskd': Method(
        "what the teacher's dense head predicts of features of the student's head",
        (
            Preset(
                models='GFL',
                part='bbox_head',
                kinds=('GFLHead',),
                terms=_crossed(-1, class_weight=1.0, box_weight=4.0, boxes='distributions'),
                inherit=(),
                source='authors: GFL, behind the third of four convolutions',
            ),
            Preset(
                models='RTMDet',
                part='bbox_head',
                kinds=('RTMDetHead',),
                terms=_crossed(-1, class_weight=1.0, box_weight=1.0, boxes='giou'),
                inherit=(),
                source='settings of the authors for RetinaNet',
            ),
            Preset(
                models='ATSS',
                part='bbox_head',
                kinds=('ATSSHead',),
                terms=_crossed(-1, class_weight=1.0, box_weight=1.0, centerness_weight=1.0),
                inherit=(),
                source='authors: ATSS, behind the third of four convolutions',
            ),
            Preset(
                models='FCOS',
                part='bbox_head',
                kinds=('FCOSHead',),
                terms=_crossed(
                    -2, class_weight=0.4, box_weight=0.75, boxes='iou', normaliser='centerness'
                ),
                inherit=(),
                source='authors: FCOS, behind the second of four convolutions',
            ),
            Preset(
                models='RetinaNet',
                part='bbox_head',
                kinds=RETINA,
                terms=_crossed(-1, class_weight=1.0, box_weight=1.0, boxes='giou'),
                inherit=(),
                source='authors: RetinaNet, behind the third of four convolutions',
            ),
        ),
    ),
    'pgd': Method(
        "features of both towers of dense heads, where the teacher's predictions are best",
        (
            Preset(
                models='AutoAssign',
                part='bbox_head',
                kinds=('AutoAssignHead',),
                terms=_guided(0.08, temperature=0.4),
                inherit=('bbox_head',),
                source='authors: AutoAssign',
            ),
            Preset(
                models='FCOS, GFL',
                part='bbox_head',
                kinds=('FCOSHead', 'GFLHead'),
                terms=_guided(0.04),
                inherit=('bbox_head',),
                source='authors: FCOS and GFL',
            ),
            Preset(
                models='DDOD',
                part='bbox_head',
                kinds=('DDODHead',),
                terms=_guided(0.08),
                inherit=('bbox_head',),
                source='authors: DDOD',
            ),
            Preset(
                models='ATSS',
                part='bbox_head',
                kinds=('ATSSHead',),
                terms=_guided(0.08, topk=9),
                inherit=('bbox_head',),
                source='authors: ATSS',
            ),
            Preset(
                models='RetinaNet',
                part='bbox_head',
                kinds=('RetinaHead',),
                terms=_guided(0.08),
                inherit=('bbox_head',),
                source='settings of the authors for DDOD',
            ),
        ),
    ),
    'adl': Method(
        'classes of dense heads, each against none, those that are hard to learn the most',
        (
            Preset(
                models='RetinaNet',
                part='bbox_head',
                kinds=RETINA,
                terms=_on_head('adl', 'ADLLoss', weight=1.0, alpha=0.5, gamma=2.0),
                inherit=(),
                source='authors: RetinaNet',
            ),
            Preset(
                models='ATSS, FCOS, GFL, RTMDet',
                part='bbox_head',
                kinds=ASSIGNING,
                terms=_on_head('adl', 'ADLLoss', weight=1.0, alpha=0.5, gamma=2.0),
                inherit=(),
                source='settings of the authors for RetinaNet',
            ),
        ),
    ),
}

# Sums over priors and classes, divided by the positives, whatever the number of levels.
SUMS: dict[str, Sums] = {}
