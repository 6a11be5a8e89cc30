"""Queries: what decoders such as DETR's predict, paired."""

from __future__ import annotations

from kd_dense.mm.presets.settings import Layout, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']


def _masks(models: str, head: str) -> Preset:
    return Preset(
        models=models,
        part=head,
        kinds=('MaskFormerHead',),
        terms={'queries': {'tap': head, 'loss': {'type': 'QueryMaskLoss'}}},
        inherit=(),
        source='ours: the weights of Mask2Former, for the teacher in the place of objects',
    )


DEFORMABLE = Layout(256, (8, 16, 32, 64))
METHODS = {
    'detrdistill': Method(
        'classes, boxes or masks of queries, in pairs; features where queries look',
        (
            Preset(
                models='DETR and detectors derived from it',
                part='bbox_head',
                kinds=('DETRHead',),
                terms={
                    'queries': {'tap': 'bbox_head', 'loss': {'type': 'QueryBoxLoss'}},
                    'features': {
                        'tap': 'neck',
                        'loss': {'type': 'QueryFeatureLoss', 'weight': 1.0},
                    },
                },
                inherit=(),
                source='authors: Deformable DETR on COCO',
                layout=DEFORMABLE,
            ),
            _masks('Mask2Former and MaskFormer of mmdet', 'panoptic_head'),
            _masks('Mask2Former and MaskFormer of mmseg', 'decode_head'),
        ),
    ),
    'kddetr': Method(
        'classes and boxes that both decoders find from the same boxes',
        (
            Preset(
                models='DAB-DETR, DINO',
                part='bbox_head',
                kinds=('DABDETRHead', 'DINOHead'),
                terms={
                    f'{name}_points': {
                        'tap': 'bbox_head',
                        'loss': {'type': 'QueryPointLoss', 'points': name},
                    }
                    for name in ('teacher', 'random')
                },
                inherit=(),
                source='code of an author: DAB-DETR on COCO',
            ),
        ),
    ),
}

SUMS: dict[str, Sums] = {
    'QueryBoxLoss': {},  # divides by pairs
    'QueryFeatureLoss': dict(weight=lambda m: 1),
}
