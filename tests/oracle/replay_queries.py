"""DETRDistill: pairs of queries, and features that are weighed by queries; KD-DETR: points."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_dense.losses import (
    TaughtQueries,
    query_box_loss,
    query_feature_loss,
    query_point_loss,
)
from kd_dense.losses.queries.boxes import match_boxes
from kd_dense.losses.queries.points import compare_points

if TYPE_CHECKING:
    from tests.oracle.lane import Case

NAMES = {'classes': 'loss_cls', 'l1': 'loss_bbox', 'giou': 'loss_iou'}


def _boxes(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Class logits and boxes of student and teacher."""
    student = [case.tensor(f'student_{name}', dtype) for name in ('logits', 'boxes')]
    # Theirs are probabilities and corners in pixels, with height and width of each image.
    size = case.tensor('img_shape', dtype).flip(1)[:, None]
    first, last = (x / size for x in case.tensor('teacher_boxes', dtype).split(2, -1))
    boxes = torch.cat([(first + last) / 2, last - first], -1)
    return student, [case.tensor('teacher_probs', dtype).logit(), boxes]


def replay_boxes(case: Case) -> dict[str, Tensor]:
    costs, weights = (tuple(case.arguments[name]) for name in ('costs', 'weights'))
    arguments = dict(zip(NAMES, weights, strict=True), costs=costs, unmatched='code')

    def parts(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        student, teacher = _boxes(case, dtype)
        student = [x.requires_grad_() for x in student]
        return student, teacher, query_box_loss(student, teacher, **arguments)

    student, teacher, found = parts(torch.float64)
    total = torch.stack([*found.values()]).sum()
    grads = torch.autograd.grad(total, student)
    ((ours, theirs),) = match_boxes(student, teacher, costs)
    matches = torch.zeros(student[0].shape[:2], dtype=torch.long).scatter(1, ours, theirs + 1)
    return {
        **{NAMES[name]: value for name, value in found.items()},
        **{f'match/{image}': row for image, row in enumerate(matches)},
        'grad_student_logits': grads[0],
        'grad_student_boxes': grads[1],
        'loss': total,
        'loss_f32': torch.stack([*parts(torch.float32)[2].values()]).sum(),
    }


def replay_features(case: Case) -> dict[str, Tensor]:
    def loss(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        levels = range(sum(name.startswith('grad_student/') for name in case.arrays))
        student = [case.tensor(f'student/{level}', dtype).requires_grad_() for level in levels]
        teacher = [case.tensor(f'teacher/{level}', dtype) for level in levels]
        stages = range(case.arguments['stages'])
        states, quality = (
            [case.tensor(f'{name}/{stage}', dtype) for stage in stages]
            for name in ('queries', 'quality')
        )
        pairs = [*zip(student, teacher, strict=True)]
        return student, [
            torch.stack(
                [query_feature_loss(s, t, TaughtQueries([q], [w])) for s, t in pairs]
            ).sum()
            for q, w in zip(states, quality, strict=True)
        ] + [
            torch.stack(
                [query_feature_loss(s, t, TaughtQueries(states, quality)) for s, t in pairs]
            ).sum()
        ]

    student, (*by_stage, total) = loss(torch.float64)
    grads = torch.autograd.grad(total, student)
    return {
        **{f'loss_stage/{stage}': value for stage, value in enumerate(by_stage)},
        **{f'grad_student/{level}': grad for level, grad in enumerate(grads)},
        'loss': total,
        'loss_f32': loss(torch.float32)[1][-1],
    }


def replay_points(case: Case) -> dict[str, Tensor]:
    layers = sum(name.startswith('student_logits/') for name in case.arrays)
    order = [*range(1, layers), 0]  # theirs begin with the last

    def run(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        student = [
            case.tensor(f'student_{kind}/{layer}', dtype).requires_grad_()
            for kind in ('logits', 'boxes')
            for layer in order
        ]
        teacher = [case.tensor(f'teacher_{kind}', dtype) for kind in ('logits', 'boxes')]
        settings = dict(temperature=case.arguments['T'], published_batch=None)
        return student, teacher, query_point_loss(student, teacher, l1=1, giou=1, **settings)

    def total(parts: dict[str, Tensor]) -> Tensor:
        return parts['classes'] + 5 * parts['l1'] + 2 * parts['giou']

    student, teacher, parts = run(torch.float64)
    grads = torch.autograd.grad(total(parts), student)
    return {
        'weight': compare_points(student, teacher, 1.0)[0].flatten(),
        'loss_cls': parts['classes'],
        'loss_bbox': parts['l1'],
        'loss_giou': parts['giou'],
        'loss': total(parts),
        'loss_f32': total(run(torch.float32)[2]),
        **{f'grad_student_logits/{layer}': grads[i] for i, layer in enumerate(order)},
        **{f'grad_student_boxes/{layer}': grads[layers + i] for i, layer in enumerate(order)},
    }


def is_input(name: str) -> bool:
    return not name.startswith(('loss', 'grad', 'match', 'weight'))


REPLAYS: dict[tuple[str, str], Callable[[Case], dict[str, Tensor]]] = {
    ('detrdistill.npz', 'loss_single_distill'): replay_boxes,
    ('detrdistill.npz', 'Distiller.forward_train, feature part'): replay_features,
    ('kddetr.npz', 'KDCriterion'): replay_points,
}
INPUTS = dict.fromkeys(REPLAYS, is_input)
