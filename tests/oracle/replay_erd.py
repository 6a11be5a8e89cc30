"""ERD: the selections, both parts, and their gradients, of one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_dense.losses.erd import Rows, erd_loss, kept_by_class, select
from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_distances,
    expected_distances,
)

if TYPE_CHECKING:
    from tests.oracle.lane import Case

NAMES = ('student_cls', 'teacher_cls', 'student_box', 'teacher_box')


def maps(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of anchors as maps of one column."""
    return {name: case.tensor(name, dtype).T[None, :, :, None].contiguous() for name in NAMES}


def loss(case: Case, found: dict[str, Tensor]) -> dict[str, Tensor]:
    anchors = case.tensor('anchors', found['teacher_box'].dtype)

    def decode(levels: list[Tensor]) -> Decoded:
        return Decoded([anchors], [torch.zeros(1, len(anchors), 4)])  # they are not used

    options = case.arguments
    weight = options['dist_loss_weight']
    return erd_loss(
        [found['student_cls'], found['student_box']],
        [found['teacher_cls'], found['teacher_box']],
        HeadBoxes(decode, decode),
        classes=weight,
        boxes=weight * options['loss_weight'],
        temperature=options['T'],
        max_iou=options['iou_threshold'],
        without_strides=True,
        published_batch=None,
    )


def selections(case: Case) -> dict[str, Tensor]:
    anchors, *rows = (case.tensor(name)[None] for name in ('anchors', *NAMES))
    boxes = decode_distances(anchors[0], expected_distances(rows[3]))
    strong = select(Rows(rows[0], rows[1], rows[2], rows[3], boxes), 2.0)
    (classes,), (boxed,) = (x[0].nonzero(as_tuple=True) for x in (strong.classes, strong.boxes))
    order = strong.scores[0, boxed].argsort(descending=True)
    best = boxed[order]
    kept = kept_by_class(
        strong.scores[:, best], boxes[:, best], strong.labels[:, best],
        case.arguments['iou_threshold'],
    )  # fmt: skip
    return dict(cls_inds=classes, box_inds=boxed, kept=order[kept[0]])


def replay(case: Case) -> dict[str, Tensor]:
    found = maps(case, torch.float64)
    leaves = [found[name].requires_grad_() for name in ('student_cls', 'student_box')]
    parts = loss(case, found)
    total = parts['classes'] + parts['boxes']
    grads = torch.autograd.grad(total, leaves)
    single = loss(case, maps(case, torch.float32))
    return {
        'loss_cls': parts['classes'],
        'loss_bbox': parts['boxes'],
        'loss': total,
        'loss_f32': single['classes'] + single['boxes'],
        **{f'grad_{n}': g[0, :, :, 0].T for n, g in zip(NAMES[::2], grads, strict=True)},
        **selections(case),
    }


REPLAYS = {'erd.npz': replay}
INPUTS = {'erd.npz': {'anchors', *NAMES}}
