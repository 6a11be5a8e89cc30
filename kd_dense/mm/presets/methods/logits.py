"""Logits: class distributions, their parts, and their correlations.

There is no row for class maps of detectors but those of DIST: they are sigmoids, for which the
other methods have no published form.
"""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

SEGMENTERS = 'segmenters with class logits'
AUXILIARY = 0.4  # what the logits of an auxiliary head count


def _on(tap: str, name: str, **loss: Any) -> dict[str, Any]:
    return {name: {'tap': tap, 'loss': loss}}


def _with_auxiliary(name: str, **loss: Any) -> dict[str, Any]:
    """On both heads, where both models have two."""
    auxiliary = _on('aux_logits', f'{name}_aux', **{**loss, 'weight': AUXILIARY * loss['weight']})
    auxiliary[f'{name}_aux']['optional'] = True
    return {**_on('logits', name, **loss), **auxiliary}


def _segmenters(terms: dict[str, Any], source: str) -> Preset:
    return Preset(models=SEGMENTERS, terms=terms, inherit=(), source=source)


def _detectors(models: str, tap: str, source: str) -> Preset:
    terms = _on(tap, 'dist', type='DISTLoss', weight=1.0)
    return Preset(models=models, part=tap, terms=terms, inherit=(), source=source)


RETINANET = 'weight of the authors for RetinaNet; tap by role'
METHODS = {
    'kd': Method(
        'class distributions at each pixel that has a label',
        (
            _segmenters(
                _with_auxiliary('kd', type='KDLoss', weight=1.0, temperature=1.0),
                'CIRKD: DeepLabV3 and PSPNet on Cityscapes, where pixels without label count too',
            ),
        ),
    ),
    'dist': Method(
        'correlations of probabilities: of classes at a pixel, of pixels for a class',
        (
            _segmenters(
                _with_auxiliary('dist', type='DISTLoss', weight=1.0),
                'authors: DeepLabV3 and PSPNet on Cityscapes',
            ),
            _detectors(
                'RetinaNet', 'bbox_head.retina_cls', 'authors: RetinaNet on COCO, class logits'
            ),
            _detectors('GFL', 'bbox_head.gfl_cls', RETINANET),
            _detectors('ATSS', 'bbox_head.atss_cls', RETINANET),
            _detectors('FCOS', 'bbox_head.conv_cls', RETINANET),
            _detectors('TOOD', 'bbox_head.tood_cls', RETINANET),
            _detectors('RepPoints', 'bbox_head.reppoints_cls_out', RETINANET),
            _detectors('SOLO', 'mask_head.conv_cls', RETINANET),
        ),
    ),
    'dkd': Method(
        'the true class of a pixel, and the others among themselves',
        (
            _segmenters(
                _with_auxiliary('dkd', type='DKDLoss', weight=1.0, alpha=1.0, beta=2.0),
                'ZaberKo/seg-gdkd: defaults for DeepLabV3 and PSPNet on Cityscapes',
            ),
        ),
    ),
    'gdkd': Method(
        "the teacher's likeliest classes at a pixel, and the others among themselves",
        (
            _segmenters(
                _with_auxiliary('gdkd', type='GDKDLoss', weight=1.0, k=3),
                'authors, ZaberKo/seg-gdkd: defaults for DeepLabV3 and PSPNet on Cityscapes',
            ),
        ),
    ),
    'nkd': Method(
        "the label, weighed by the teacher's trust in it, and the other classes",
        (
            _segmenters(
                _on('logits', 'nkd', type='NKDLoss', weight=1.0, gamma=1.5),
                'settings of the authors for classification; on maps ours',
            ),
        ),
    ),
    'wsld': Method(
        'class distributions, weighed by how much better the teacher knows the label',
        (
            _segmenters(
                _on('logits', 'wsld', type='WSLDLoss', weight=2.5, temperature=2.0),
                'settings of MMRazor for classification; on maps ours',
            ),
        ),
    ),
    'edge_body': Method(
        'classes at the edges of objects, and where each class is active away from them',
        (
            Preset(
                models='segmenters with class logits',
                terms={
                    'edge': {
                        'tap': 'logits',
                        'loss': {'type': 'KDLoss', 'weight': 1.0, 'where': 'edge', 'edge': 7},
                    },
                    'body': {
                        'tap': 'logits',
                        'loss': {
                            'type': 'CWDLoss',
                            'weight': 3.0,
                            'temperature': 4.0,
                            'where': 'body',
                            'edge': 7,
                        },
                    },
                },
                inherit=(),
                source='ours: the idea of BPKD, with the weights of KD in CIRKD and of CWD',
            ),
        ),
    ),
}

# Nothing is summed over a map: all are means over its positions.
SUMS: dict[str, Sums] = {}
