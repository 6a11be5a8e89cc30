"""Bridging cross-task protocol inconsistency (BCKD).

Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
Detection", ICCV 2023. https://arxiv.org/abs/2308.14286
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses.base import MMDET_EPS, DistillLoss, check_weights
from kd_dense.losses.ld.head_targets import HeadTargets, anchors_of
from kd_dense.losses.predictions.boxes import HeadBoxes, overlap_loss
from kd_dense.losses.predictions.heads import (
    class_difference,
    focal_difference,
    positives,
    summed,
)

__all__ = ['BCKDLoss', 'bckd_loss']

PARTS = ('classes', 'boxes')


def bckd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    head_boxes: HeadBoxes,
    class_weight: float = 1.0,
    box_weight: float = 4.0,
    beta: float = 1.0,
    positive_levels_only: bool = True,
    normaliser: Tensor | float | None = None,
) -> dict[str, Tensor]:
    r"""Match what two dense heads predict: each class against none, and decoded boxes.

    A softmax over the classes is not what a dense head learns: it has a sigmoid for each. So each
    probability $p_{ik}$ of the student, of prior i and class k, is compared with the teacher's
    $q_{ik}$ by itself, and boxes are compared as boxes, where the models differ most:

    $$
    \mathrm{classes} = \frac{w_\mathrm{classes}}{n} \sum_i l_i \sum_k |q_{ik} - p_{ik}|^\beta\,
        \mathrm{BCE}(p_{ik}, q_{ik}),
    \qquad
    \mathrm{boxes} = \frac{w_\mathrm{boxes}}{n} \sum_i l_i \max_k |q_{ik} - p_{ik}|
        \bigl(1 - \mathrm{GIoU}(b^s_i, b^t_i)\bigr)
    $$

    over all priors, with the label weights $l$ of the student's head and the number n of its
    positives. The largest difference of a prior is a constant for the gradient.

    Args:
        student: What the head yields, L levels: L maps of class logits
            ``(N, K * num_classes, H, W)``, then L of boxes in any form that ``head_boxes`` knows;
            what follows is not looked at.
        teacher: The same of the teacher's head, whose boxes may have another form. No gradient
            flows into it.
        head_targets: What the student's head computed for its own loss.
        head_boxes: What makes boxes of the maps.
        class_weight: Factor on ``classes``. A part of weight 0 costs nothing.
        box_weight: Factor on ``boxes``.
        beta: $\beta \ge 1$.
        positive_levels_only: Leave out levels without a positive in the batch, as the authors'
            code does; the formula has no such exception.
        normaliser: n, where it is not the number of positives.

    Returns:
        The weighted parts ``classes`` and ``boxes``: scalars, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.

    Examples:
        >>> from kd_dense.losses.predictions.boxes import Decoded, decode_distances
        >>> points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
        >>> def decode(maps):
        ...     distances = maps[0].flatten(2).mT
        ...     return Decoded([points], [decode_distances(points, distances)])
        >>> targets = HeadTargets(
        ...     priors=[points],
        ...     labels=[torch.tensor([[0, 1]])],
        ...     label_weights=[torch.ones(1, 2)],
        ...     valid=[torch.ones(1, 2, dtype=torch.bool)],
        ...     boxes=[torch.tensor([[0.0, 0.0, 8.0, 8.0]])],
        ...     num_classes=1,
        ...     strides=[8],
        ... )
        >>> student = [torch.zeros(1, 1, 1, 2), torch.ones(1, 4, 1, 2)]
        >>> teacher = [torch.full((1, 1, 1, 2), 2.0), torch.full((1, 4, 1, 2), 2.0)]
        >>> parts = bckd_loss(student, teacher, targets, HeadBoxes(decode, decode))
        >>> {name: round(part.item(), 3) for name, part in parts.items()}
        {'classes': 0.528, 'boxes': 2.285}
    """
    _check_arguments('bckd_loss', class_weight, box_weight, beta)
    rows = bckd_rows(
        student,
        teacher,
        head_targets,
        head_boxes,
        class_weight,
        box_weight,
        beta,
        positive_levels_only,
        normaliser,
    )
    return summed(rows, PARTS, student[: 2 * len(head_targets.sizes)])


def bckd_rows(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    head_boxes: HeadBoxes,
    class_weight: float,
    box_weight: float,
    beta: float,
    positive_levels_only: bool,
    normaliser: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """What each prior adds to the parts that are not switched off, ``(N, A)``."""
    anchors = anchors_of(student, teacher, head_targets)
    levels = len(anchors)
    teacher = [x.detach() for x in teacher]
    classes, taught = student[:levels], teacher[:levels]
    weights = torch.cat(head_targets.label_weights, 1)
    if positive_levels_only:
        levels_of_priors = zip(head_targets.positive_levels, head_targets.sizes, strict=True)
        weights = weights * torch.cat([one.expand(size) for one, size in levels_of_priors])
    n = positives(head_targets) if normaliser is None else normaliser
    weights = weights / (n + MMDET_EPS)
    rows = {}
    if class_weight > 0:
        rows['classes'] = focal_difference(classes, taught, anchors, beta) * class_weight * weights
    if box_weight > 0:
        ours = torch.cat(head_boxes.student(student[levels : 2 * levels]).boxes, 1)
        theirs = torch.cat(head_boxes.teacher(teacher[levels : 2 * levels]).boxes, 1)
        apart = overlap_loss(ours, theirs, 'giou') * class_difference(classes, taught, anchors)
        rows['boxes'] = apart * box_weight * weights
    return rows


class BCKDLoss(DistillLoss):
    """Module form of [`bckd_loss`][], times ``weight``; its tap is the dense head.

    The defaults are the authors' setting for GFL.

    Args:
        weight: Factor on both parts.
        class_weight: See [`bckd_loss`][], as the other arguments.

    Examples:
        >>> BCKDLoss(box_weight=0).parts
        ('classes', 'boxes')
    """

    needs = ('head_targets', 'head_boxes')
    parts = PARTS
    all_maps = True
    any_channels = True
    adaptable = False

    def __init__(
        self,
        weight: float = 1.0,
        class_weight: float = 1.0,
        box_weight: float = 4.0,
        beta: float = 1.0,
        positive_levels_only: bool = True,
    ) -> None:
        super().__init__(weight)
        _check_arguments('BCKDLoss', class_weight, box_weight, beta)
        self.settings: dict[str, Any] = dict(
            class_weight=class_weight,
            box_weight=box_weight,
            beta=beta,
            positive_levels_only=positive_levels_only,
        )

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        head_targets: HeadTargets,
        head_boxes: HeadBoxes,
    ) -> dict[str, Tensor]:
        parts = bckd_loss(student, teacher, head_targets, head_boxes, **self.settings)
        return {name: self.weight * part for name, part in parts.items()}


def _check_arguments(owner: str, class_weight: float, box_weight: float, beta: float) -> None:
    check_weights(owner, class_weight=class_weight, box_weight=box_weight)
    if not beta >= 1:
        raise ValueError(f'{owner} expects beta >= 1, got beta={beta}')
