"""BCKD and ADL, CrossKD, PGD: recorded cases of what dense heads predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import HeadTargets, adl_loss, bckd_loss
from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from kd_dense.losses.predictions.heads import EPS, focal_difference
from tests.oracle.lane import Case


def both(replay: Callable[[Case, torch.dtype], dict[str, Tensor]]) -> Any:
    """Replay in float64, and in float32 what was recorded so."""

    def replays(case: Case) -> dict[str, Tensor]:
        single = {f'{k}_f32': v for k, v in replay(case, torch.float32).items()}
        return replay(case, torch.float64) | single

    return replays


def level_targets(
    images: int, priors: Tensor, classes: int, labels: Tensor, weights: Tensor, stride: int = 1
) -> HeadTargets:
    """The targets of one level; boxes do not matter."""
    return HeadTargets(
        priors=[priors],
        labels=[labels.view(images, -1)],
        label_weights=[weights.view(images, -1)],
        valid=[torch.ones(images, labels.numel() // images, dtype=torch.bool)],
        boxes=[torch.zeros(0, 4)] * images,
        num_classes=classes,
        strides=[stride],
    )


def distributions(priors: Tensor, stride: float, maps: Sequence[Tensor]) -> Decoded:
    """Boxes of box distributions on one level, in strides."""
    rows = rows_of_priors(maps[0], 1)
    return Decoded([priors], [decode_distances(priors / stride, expected_distances(rows))])


@both
def replay_bckd(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = case.arguments
    if case.cls == 'NovelKDLoss':
        student = case.tensor('student', dtype).requires_grad_()
        maps = ([x[:, :, None, None]] for x in (student, case.tensor('teacher', dtype)))
        rows = focal_difference(*maps, anchors=[1], beta=arguments['beta'])[:, 0]
        if 'weight' in case.arrays:
            rows = rows * case.tensor('weight', dtype)
        factor = arguments['avg_factor']
        loss = rows.mean() if factor is None else rows.sum() / (factor + EPS)
        loss = arguments['loss_weight'] * loss
        (grad,) = torch.autograd.grad(loss, student)
        return {'loss': loss, 'grad_student': grad}
    names = [f'{whose}_{what}' for whose in ('student', 'teacher') for what in ('cls', 'box')]
    cls, box, *teacher = (case.tensor(name, dtype) for name in names)
    cls.requires_grad_(), box.requires_grad_()
    anchors = case.tensor('anchors', dtype)
    targets = level_targets(
        len(cls),
        anchors,
        arguments['num_classes'],
        case.tensor('labels', torch.int64),
        case.tensor('label_weights', dtype),
        arguments['stride'],
    )
    decode = partial(distributions, anchors, arguments['stride'])
    parts = bckd_loss(
        [cls, box],
        teacher,
        targets,
        HeadBoxes(decode, decode),
        normaliser=arguments['num_total_samples'],
    )
    loss = parts['classes'] + parts['boxes']
    grads = torch.autograd.grad(loss, [cls, box])
    return {
        'loss_cls_kd': parts['classes'],
        'loss_box_kd': parts['boxes'],
        'loss': loss,
        'grad_student_cls': grads[0],
        'grad_student_box': grads[1],
    }


@both
def replay_adl(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = case.arguments
    student = case.tensor('student', dtype).requires_grad_()
    q = case.tensor('teacher', dtype)  # probabilities
    labels = case.tensor('labels', torch.int64).permute(0, 2, 3, 1).flatten(1)
    targets = level_targets(
        len(labels),
        torch.zeros(labels.shape[1], 4, dtype=dtype),
        arguments['num_classes'],
        labels,
        (labels != arguments['ignored_label']).to(dtype),
    )
    adaptive = arguments['normaliser'] == 'power sum'
    call = partial(
        adl_loss,
        [student],
        [q.logit()],
        targets,
        alpha=arguments['alpha'],
        gamma=arguments['gamma'],
        entropy=arguments['beta'],
    )
    normaliser = None if adaptive else case.tensor('normaliser', dtype)
    loss = arguments['scale'] * call(normaliser=normaliser)
    (grad,) = torch.autograd.grad(loss, student)
    return {'loss': loss, 'grad_student': grad, 'power_sum': q.pow(1.8).sum()}


REPLAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    'bckd.npz': replay_bckd,
    'adl.npz': replay_adl,
}
INPUTS: dict[str, set[str]] = {
    'bckd.npz': {
        *('student', 'teacher', 'weight', 'student_cls', 'teacher_cls', 'student_box'),
        *('teacher_box', 'anchors', 'labels', 'label_weights', 'bbox_targets'),
    },
    # Un-scaled terms are summed here before they leave the loss.
    'adl.npz': {'student', 'teacher', 'labels', 'normaliser', 'loss_map'},
}
