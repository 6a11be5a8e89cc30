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
        'boxes or masks of paired queries, and their classes; features where queries look',
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
}

SUMS: dict[str, Sums] = {
    'QueryBoxLoss': {},  # divides by pairs
    'QueryFeatureLoss': dict(weight=lambda m: 1),
}
