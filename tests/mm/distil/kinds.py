"""A toy student with each kind of teacher, and each with the pictures that go with it."""

from __future__ import annotations

from typing import Any

import torch

from kd_dense.mm.batches.views import FixedViews
from kd_dense.mm.datasets.unlabelled import Unlabelled
from tests.mm import toy, toy_foreign

LOGITS, WITHIN = 'decode_head.conv_seg', dict(student='backbone.layer3', teacher='backbone.layer4')
FOREIGN = {
    'timm': toy_foreign.vit(),
    'timm in bf16': toy_foreign.convnext(precision='bf16'),
    'transformers': toy_foreign.of_transformers('dinov2'),
    'module': None,  # a new one each time
}
# 'mixed' has the average and the student itself beside a teacher. 'all' has teachers of three
# kinds, one of them kept, on pictures of which half have no labels.
KINDS = ('openmmlab', *FOREIGN, 'several', 'ema', 'none', 'mixed', 'cached', 'all')
# Not those that only differ in whose code runs.
DIFFERENT = ('module', 'several', 'ema', 'none', 'mixed', 'cached', 'all')


def config(kind: str, folder: Any = '', weight: float = 3.0, norm: Any = None) -> Any:
    """A recipe.

    Args:
        kind: Of the teacher.
        folder: Where maps are kept.
        weight: Of each term.
        norm: Of the student's layers, in place of batch norms; then it has no dropout either.
    """

    def term(tap: Any = LOGITS, loss: Any = toy.CWD, **fields: Any) -> dict[str, Any]:
        return dict(tap=tap, loss={**loss, 'weight': weight}, **fields)

    kept = dict(untrained(16), cache=dict(views=2, folder=str(folder)))
    teacher, terms = {
        'openmmlab': (untrained(16), dict(logits=term(), features=term('backbone.layer4'))),
        'several': (
            dict(a=untrained(16), b=untrained(24)),
            dict(
                one=term(teacher='a'),
                features=term('backbone.layer4', teacher='b'),
                both=term(teacher=['a', 'b']),
            ),
        ),
        'ema': (dict(type='ema', momentum=0.05), dict(logits=term())),
        'none': (None, dict(own=term(WITHIN))),
        'mixed': (
            dict(a=untrained(16), ema='ema', own=None),
            dict(
                one=term(teacher='a'), two=term(teacher='ema'), three=term(WITHIN, teacher='own')
            ),
        ),
        'cached': (kept, dict(logits=term(), features=term('backbone.layer4'))),
        'all': (
            dict(a=kept, b=untrained(24), ema=dict(type='ema', momentum=0.05)),
            dict(
                one=term(teacher='a'),
                both=term(teacher=['a', 'b']),
                weighed=term(teacher=['a', 'b'], loss=dict(type='CAMKDLoss')),
                average=term(teacher='ema'),
            ),
        ),
    }.get(kind, (None, None))
    if kind in FOREIGN:
        torch.manual_seed(3)
        teacher = FOREIGN[kind] or toy_foreign.module()
        terms = dict(features=term('backbone[-1]'))
    student = toy.segmenter() if norm is None else toy.segmenter(dropout=0.0)
    if norm is not None:
        student.backbone.norm_cfg = student.decode_head.norm_cfg = norm
    found = toy.distilled(student, '', terms, unlabelled=kind == 'all')
    found.teacher = teacher
    return found


def untrained(width: int) -> dict[str, Any]:
    return dict(config=toy.segmenter(width), checkpoint=None)


def pictures(kind: str, **others: Any) -> Any:
    """The data set that goes with a kind."""
    found: Any = toy.SegScenes(**others)
    if kind == 'all':
        found = Unlabelled(found, beside=toy.SegScenes(6, **others))
    return FixedViews(found, views=2) if kind in ('cached', 'all') else found


def loader(kind: str) -> dict[str, Any]:
    """The dataloader that goes with a kind."""
    sampler = dict(type='InfiniteSampler', shuffle=True)
    if kind == 'all':
        sampler = dict(type='kd_dense.RatioSampler', batch_size=2, infinite=True)
    return dict(batch_size=2, num_workers=0, sampler=sampler, dataset=pictures(kind))


def batch(model: Any, kind: str, count: int = 4) -> tuple[Any, Any]:
    """The first pictures of a kind, each the same whenever it is asked for; half have labels."""
    scenes = pictures(kind, augment=False)
    first = range(count) if kind != 'all' else [0, 1, 6, 7]
    chosen = [scenes.view(i, 0) if hasattr(scenes, 'view') else scenes[i] for i in first]
    return toy.batch(model, chosen, count)
