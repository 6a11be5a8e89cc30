"""Cross-head distillation (CrossKD).

Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024.
https://arxiv.org/abs/2306.11369
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import (
    at_least_float32,
    check_choice,
    check_temperature,
    divide_over_ranks,
    mean_and_std,
    mean_over_ranks,
    soft_kl,
    standardised,
)
from kd_dense.losses.base import MMDET_EPS, DistillLoss, check_weights
from kd_dense.losses.ld.head_targets import HeadTargets, anchors_of
from kd_dense.losses.ld.ld import by_prior, check_distributions, largest_score
from kd_dense.losses.predictions.boxes import HeadBoxes, overlap_loss
from kd_dense.losses.predictions.heads import focal_difference, positives, summed

__all__ = ['CrossKDLoss', 'aligned', 'crosskd_loss']

Boxes = Literal['giou', 'iou', 'distributions']
Normaliser = Literal['positives', 'centerness']
PARTS = ('classes', 'boxes', 'centerness')


def aligned(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Give each channel of a map the mean and the spread that it has in the teacher's.

    $$
    \frac{s - \mu_s}{\sigma_s + 10^{-6}}\,\sigma_t + \mu_t
    $$

    over the images and positions of all processes.

    Args:
        student: ``(N, C, H, W)``.
        teacher: Same shape. No gradient flows into it.

    Returns:
        Same shape, at least float32.

    Examples:
        >>> student = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
        >>> aligned(student, 10 * student).flatten()
        tensor([10.0000, 20.0000, 30.0000])
    """
    mean, std = mean_and_std(teacher, dims=(0, 2, 3))
    return standardised(student, dims=(0, 2, 3), eps=1e-6) * std + mean


def crosskd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    head_boxes: HeadBoxes,
    class_weight: float = 1.0,
    box_weight: float = 1.0,
    centerness_weight: float = 0.0,
    boxes: Boxes = 'giou',
    beta: float = 1.0,
    temperature: float = 1.0,
    normaliser: Normaliser = 'positives',
    divisor: Tensor | float | None = None,
) -> dict[str, Tensor]:
    r"""Match what the teacher's head predicts of the student's features and of its own.

    With the probabilities $p_{ik}$ of prior i and class k that the teacher's head predicts of
    features of the student, $q_{ik}$ those of its own, the boxes $b$, the label weights $l$ and
    $w_i = \max_k q_{ik}$ where $l_i > 0$:

    $$
    \mathrm{classes} = \frac{w_\mathrm{classes}}{n} \sum_i l_i \sum_k |q_{ik} - p_{ik}|^\beta\,
        \mathrm{BCE}(p_{ik}, q_{ik}),
    \qquad
    \mathrm{boxes} = \frac{w_\mathrm{boxes}}{n} \sum_i w_i\, d(b^s_i, b^t_i)
    $$

    where d is 1 - GIoU or -log IoU; and of distributions the mean of the divergences of the four
    sides, summed over bins, at a temperature T, which is divided by $\sum_i w_i$ in the place of
    n. ``centerness`` is the cross-entropy of the third kind of maps, over positives, divided by n.

    Settings of the authors:

    - GFL: ``boxes='distributions', box_weight=4``
    - RetinaNet: none
    - ATSS: ``centerness_weight=1``
    - FCOS: ``class_weight=0.4, box_weight=0.75, boxes='iou', normaliser='centerness'``

    Args:
        student: What the teacher's head predicts of features of the student, L levels: L maps of
            class logits ``(N, K * num_classes, H, W)``, L of boxes, and perhaps L of centerness.
        teacher: What it predicts of its own. No gradient flows into it.
        head_targets: What the student's head computed for its own loss.
        head_boxes: What makes boxes of the maps; those are the teacher's on both sides.
        class_weight: Factor on ``classes``. A part of weight 0 costs nothing.
        box_weight: Factor on ``boxes``.
        centerness_weight: Factor on ``centerness``.
        boxes: What is compared of boxes.
        beta: $\beta \ge 1$.
        temperature: T of distributions, ``> 0``.
        normaliser: What n is: the positives of the student's head; or, of a head without anchors,
            the sum of their centerness.
        divisor: n, where it is neither.

    Returns:
        The weighted parts ``classes``, ``boxes`` and ``centerness``: scalars, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.

    Examples:
        >>> from kd_dense.losses.predictions.boxes import Decoded, decode_distances
        >>> points = torch.tensor([[4.0, 4.0]])
        >>> def decode(maps):
        ...     return Decoded([points], [decode_distances(points, maps[0].flatten(2).mT)])
        >>> targets = HeadTargets(
        ...     priors=[points],
        ...     labels=[torch.tensor([[0]])],
        ...     label_weights=[torch.ones(1, 1)],
        ...     valid=[torch.ones(1, 1, dtype=torch.bool)],
        ...     boxes=[torch.tensor([[0.0, 0.0, 8.0, 8.0]])],
        ...     num_classes=1,
        ...     strides=[8],
        ... )
        >>> student = [torch.zeros(1, 1, 1, 1), torch.ones(1, 4, 1, 1)]
        >>> teacher = [torch.zeros(1, 1, 1, 1), torch.full((1, 4, 1, 1), 2.0)]
        >>> parts = crosskd_loss(student, teacher, targets, HeadBoxes(decode, decode))
        >>> {name: round(part.item(), 3) for name, part in parts.items()}
        {'classes': 0.0, 'boxes': 0.375, 'centerness': 0.0}
    """
    settings: dict[str, Any] = dict(
        class_weight=class_weight,
        box_weight=box_weight,
        centerness_weight=centerness_weight,
        boxes=boxes,
        beta=beta,
        temperature=temperature,
        normaliser=normaliser,
    )
    _check_arguments('crosskd_loss', **settings)
    rows = crosskd_rows(student, teacher, head_targets, head_boxes, **settings, divisor=divisor)
    return summed(rows, PARTS, student)


def crosskd_rows(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    head_boxes: HeadBoxes,
    class_weight: float,
    box_weight: float,
    centerness_weight: float,
    boxes: Boxes,
    beta: float,
    temperature: float,
    normaliser: Normaliser,
    divisor: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """What each prior adds to the parts that are not switched off, ``(N, A)``."""
    anchors = anchors_of(student, teacher, head_targets, kinds=3 if centerness_weight > 0 else 2)
    levels = len(anchors)
    teacher = [x.detach() for x in teacher]
    label_weights = torch.cat(head_targets.label_weights, 1)
    n = _divisor(head_targets, normaliser) if divisor is None else divisor
    rows = {}
    if class_weight > 0:
        apart = focal_difference(student[:levels], teacher[:levels], anchors, beta)
        rows['classes'] = apart * class_weight * label_weights / (n + MMDET_EPS)
    if box_weight > 0:
        weights = largest_score(teacher[:levels], anchors) * (label_weights > 0)
        ours, theirs = (maps[levels : 2 * levels] for maps in (student, teacher))
        if boxes == 'distributions':
            weights = divide_over_ranks(weights, weights.sum())
            check_distributions(ours, theirs, anchors, 4, " Otherwise take 'giou'")
            apart = _divergence(ours, theirs, anchors, temperature) / (4 + MMDET_EPS)
        else:
            weights = weights / (n + MMDET_EPS)
            one, other = (torch.cat(head_boxes.teacher(x).boxes, 1) for x in (ours, theirs))
            apart = overlap_loss(one, other, boxes)
        rows['boxes'] = apart * box_weight * weights
    if centerness_weight > 0:
        x, t = (
            torch.cat([by_prior(at_least_float32(m)) for m in maps[2 * levels : 3 * levels]], 1)
            for maps in (student, teacher)
        )
        apart = F.binary_cross_entropy_with_logits(x, t.sigmoid(), reduction='none')
        rows['centerness'] = apart * centerness_weight * head_targets.positive / (n + MMDET_EPS)
    return rows


def _divisor(head_targets: HeadTargets, normaliser: Normaliser) -> Tensor:
    if normaliser == 'positives':
        return positives(head_targets)
    if head_targets.centerness is None:
        raise ValueError(
            "normaliser='centerness' is for heads without anchors, as FCOS; the targets of the "
            "student's head have none: take normaliser='positives'"
        )
    return mean_over_ranks(torch.cat(head_targets.centerness, 1).sum()).clamp(min=1e-6)


def _divergence(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    anchors: Sequence[int],
    temperature: float,
) -> Tensor:
    """The divergences of the four sides of each prior, added up, ``(N, A)``."""
    levels = []
    for s, t, k in zip(student, teacher, anchors, strict=True):
        s, t = (at_least_float32(x).unflatten(1, (k, 4, -1)) for x in (s, t))
        levels.append(by_prior(soft_kl(s, t, temperature, dim=3).sum(2)))
    return torch.cat(levels, 1)


class CrossKDLoss(DistillLoss):
    """Module form of [`crosskd_loss`][], times ``weight``.

    Its term has ``cross_at``, so that what stands for the student is what the teacher's head
    predicts of its features: ``dict(tap='bbox_head', cross_at=1, loss=dict(type='CrossKDLoss'))``.

    Args:
        weight: Factor on all parts.
        class_weight: See [`crosskd_loss`][], as the other arguments.

    Examples:
        >>> CrossKDLoss(boxes='distributions', box_weight=4.0).parts
        ('classes', 'boxes', 'centerness')
    """

    needs = ('head_targets', 'head_boxes')
    parts = PARTS
    all_maps = True
    adaptable = False

    def __init__(
        self,
        weight: float = 1.0,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        centerness_weight: float = 0.0,
        boxes: Boxes = 'giou',
        beta: float = 1.0,
        temperature: float = 1.0,
        normaliser: Normaliser = 'positives',
    ) -> None:
        super().__init__(weight)
        self.settings: dict[str, Any] = dict(
            class_weight=class_weight,
            box_weight=box_weight,
            centerness_weight=centerness_weight,
            boxes=boxes,
            beta=beta,
            temperature=temperature,
            normaliser=normaliser,
        )
        _check_arguments('CrossKDLoss', **self.settings)

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        head_targets: HeadTargets,
        head_boxes: HeadBoxes,
    ) -> dict[str, Tensor]:
        parts = crosskd_loss(student, teacher, head_targets, head_boxes, **self.settings)
        return {name: self.weight * part for name, part in parts.items()}


def _check_arguments(
    owner: str,
    *,
    boxes: str,
    beta: float,
    temperature: float,
    normaliser: str,
    **weights: float,
) -> None:
    check_weights(owner, **weights)
    check_choice(owner, 'boxes', boxes, Boxes)
    check_choice(owner, 'normaliser', normaliser, Normaliser)
    check_temperature(temperature)
    if not beta >= 1:
        raise ValueError(f'{owner} expects beta >= 1, got beta={beta}')
