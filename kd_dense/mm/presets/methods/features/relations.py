"""Relations: of channels, of positions, and of the images of a batch."""

from __future__ import annotations

from functools import partial
from typing import Any

from kd_dense.mm.presets.settings import Method, Preset, Sums, for_segmenters

__all__ = ['METHODS', 'SHARES', 'SUMS']

BY_ROLE = 'weight of the authors for classification; tap by role'


# As strong as the task most of these made a student worse, and a tenth as strong none did
# (docs/methods/relations.md).
WEAK = 0.1
SHARES = dict.fromkeys(
    ('CCKDLoss', 'ICKDLoss', 'PKTLoss', 'RKDLoss', 'RelationLoss', 'SPLoss'), WEAK
)


def _on(tap: str, name: str, **loss: Any) -> dict[str, Any]:
    return {name: {'tap': tap, 'loss': loss}}


def _anywhere(
    name: str, source: str = BY_ROLE, share: float | None = None, **loss: Any
) -> tuple[Preset, ...]:
    """On the last map of any backbone."""
    terms = _on('backbone[-1]', name, **loss)
    if share is not None:
        terms[name]['share'] = share
    return (
        Preset(
            models='models with a backbone',
            terms=terms,
            inherit=(),
            source=source,
            elsewhere=True,
        ),
    )


ICKD: dict[str, Any] = _on('backbone[-1]', 'ickd', type='ICKDLoss', weight=2.5, windows=(4, 4))
ICKD['ickd']['adapter'] = {'type': 'Adapter', 'norm': True}
CROSS: dict[str, Any] = dict(type='CrossImageLoss', weight=1.0, temperature=0.1)

METHODS = {
    'ickd': Method(
        'which channels are active together, behind a layer with a norm',
        (
            Preset(
                models='segmenters',
                part='decode_head',
                terms=ICKD,
                inherit=(),
                source='weight of the authors for classification, windows of theirs for VOC; tap '
                'by role',
                elsewhere=True,
            ),
        ),
    ),
    'aicsd': Method(
        'how alike the maps of class logits are to each other in an image',
        (
            Preset(
                models='segmenters with class logits',
                terms={'aicsd': {'tap': 'logits', 'loss': {'type': 'ICKDLoss'}, 'share': WEAK}},
                inherit=(),
                source='ours: weight by share; AICSD, one of its terms',
            ),
        ),
    ),
    'dsd': Method(
        'which classes are likely at the same places; how attention moves between stages',
        (
            Preset(
                models='segmenters with class logits',
                terms={
                    **_on(
                        'logits', 'dsd', type='RelationLoss', weight=10.0, over='channels',
                        rows='none', reduction='mean', values='places', temperature=4.0, pool=2,
                    ),
                    'psd': {
                        'tap': 'backbone[-2:]',
                        'loss': {'type': 'AttentionChangeLoss', 'weight': 1000.0},
                        'optional': True,
                    },
                },
                inherit=(),
                source='weights of runs of the CIRKD repository on Cityscapes; stages by role',
            ),
        ),
    ),
    'cross_image': Method(
        'where in each image of the batch a position finds its like',
        for_segmenters(
            partial(_on, name='cross_image', **CROSS),
            'authors: DeepLabV3 and PSPNet on Cityscapes, one of their terms',
        ),
    ),
    'sp': Method(
        'which images of a batch are alike', _anywhere('sp', type='SPLoss', weight=3000.0)
    ),
    'rkd': Method(
        'distances and angles of the images of a batch',
        _anywhere('rkd', type='RKDLoss', distance_weight=25.0, angle_weight=50.0),
    ),
    'pkt': Method(
        'how likely an image of a batch takes another one for its like',
        _anywhere('pkt', type='PKTLoss', weight=30000.0),
    ),
    'cckd': Method(
        'products of the images of a batch',
        _anywhere(
            'cckd', 'ours: weight by share; tap by role', share=WEAK, type='CCKDLoss',
            kernel='bilinear',
        ),
    ),
    'nst': Method(
        'the channels as one set, none paired with another',
        _anywhere(
            'nst', 'weight of RepDistiller for classification; tap by role', type='NSTLoss',
            weight=50.0,
        ),
    ),
}  # fmt: skip

# Published on one map each.
SUMS: dict[str, Sums] = {}
