"""Consistent points: boxes that both decoders look at, so that queries need no pairs.

Wang et al., "KD-DETR: Knowledge Distillation for Detection Transformer with Consistent
Distillation Points Sampling", CVPR 2024. https://arxiv.org/abs/2211.08071
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kd_dense.functional import (
    check_choice,
    check_published_batch,
    check_temperature,
    mean_over_ranks,
    published_sum,
    soft_kl,
    two_class_logits,
)
from kd_dense.losses.base import DistillLoss, check_counts, check_weights
from kd_dense.losses.queries.boxes import box_giou
from kd_dense.losses.queries.matching import layers_of

__all__ = ['Decoders', 'QueryPointLoss', 'query_point_loss']

PARTS = ('classes', 'l1', 'giou')
EPS = 1e-6  # of areas, of an image of area 1
Points = Literal['teacher', 'random']


class Decoders(NamedTuple):
    """The decoders of student and teacher on the images of a step.

    Attributes:
        student: Makes of boxes ``(N, P, 4)``, the logits of cx, cy, w, h, what the student
            predicts for them: class logits ``(N, P, K)`` of each layer, then boxes ``(N, P, 4)``
            of each.
        teacher: The same of the teacher, without gradient.
        boxes: Those that the teacher's decoder begins with itself, ``(N, P, 4)``, as logits.
    """

    student: Callable[[Tensor], list[Tensor]]
    teacher: Callable[[Tensor], list[Tensor]]
    boxes: Tensor


def query_point_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    classes: float = 1.0,
    l1: float = 5.0,
    giou: float = 2.0,
    temperature: float = 10.0,
    published_batch: int | None = 8,
) -> dict[str, Tensor]:
    r"""Compare what two decoders predict from the same boxes.

    With the teacher's largest class probability $w_p$ for point p in its last layer, the parts are

    $$
    \mathrm{classes} = \frac{w_\mathrm{classes} T^2}{K} \sum_{l, p} w_p\,
        \mathrm{KL}\bigl(\sigma(t_p / T) \,\|\, \sigma(s_{lp} / T)\bigr), \qquad
    \mathrm{l1} = \frac{w_\mathrm{l1}}{4} \sum_l \frac{\sum_p w_p \lVert b_{lp} - \hat b_p\rVert_1}
        {\sum_p w_p}
    $$

    and ``giou``, as ``l1`` with $1 - \mathrm{GIoU}(b_{lp}, \hat b_p)$. Every layer of the student
    is compared with the last of the teacher; the numbers of layers may differ. The sum of the
    weights is the mean over the processes of a training.

    Args:
        student: Class logits ``(N, P, K)`` of each layer of the decoder, then boxes
            ``(N, P, 4)`` of each: cx, cy, w, h, as shares of the image.
        teacher: The same, of the same points. No gradient flows into it.
        classes: Factor on the part ``classes``.
        l1: Factor on ``l1``.
        giou: Factor on ``giou``.
        temperature: T, ``> 0``.
        published_batch: ``classes`` is the mean over images times this, the images on each of the
            authors' GPUs. ``None`` sums over the batch as their code does.

    Returns:
        The weighted parts ``classes``, ``l1`` and ``giou``: scalars, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.

    Examples:
        >>> logits = torch.tensor([[[2.0, -1.0]]])
        >>> boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])
        >>> parts = query_point_loss([-logits, boxes + 0.1], [logits, boxes])
        >>> {name: round(part.item(), 3) for name, part in parts.items()}
        {'classes': 15.737, 'l1': 0.5, 'giou': 1.247}
    """
    weights = _check_arguments(
        'query_point_loss', (classes, l1, giou), temperature, published_batch
    )
    weight, parts = compare_points(student, teacher, temperature)
    total = mean_over_ranks(weight.sum())
    images = published_sum(parts['classes'].sum(), len(weight), published_batch)
    return {
        'classes': weights['classes'] * images,
        'l1': weights['l1'] * parts['l1'].sum() / total,
        'giou': weights['giou'] * parts['giou'].sum() / total,
    }


def compare_points(
    student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights of points, and for each part what they add, ``(N, P)``, over all layers.

    Args:
        student: See [`query_point_loss`][], as for those that follow.
        teacher: The same.
        temperature: T.
    """
    ours, theirs = layers_of('query_point_loss', 'boxes', student, teacher)
    logits, boxes = theirs[-1]
    if logits.shape != ours[0].logits.shape:
        raise ValueError(
            'query_point_loss expects predictions of the same points, got class logits '
            f'{tuple(student[0].shape)} of the student and {tuple(teacher[0].shape)} of the '
            'teacher: run both decoders on the same boxes'
        )
    weight = logits.sigmoid().amax(2)
    spelt = two_class_logits(logits.flatten(0, 1))
    parts = {name: torch.zeros_like(weight) for name in PARTS}
    for layer in ours:
        apart = soft_kl(two_class_logits(layer.logits.flatten(0, 1)), spelt, temperature, 1)
        found = (
            apart.view_as(weight) / spelt.shape[1],
            (layer.shapes - boxes).abs().mean(2),
            1 - box_giou(layer.shapes, boxes, EPS),
        )
        parts = {n: x + weight * y for (n, x), y in zip(parts.items(), found, strict=True)}
    return weight, parts


def _check_arguments(
    owner: str, weights: Sequence[float], temperature: float, published_batch: int | None
) -> dict[str, float]:
    check_temperature(temperature)
    check_published_batch(owner, published_batch)
    return check_weights(owner, **dict(zip(PARTS, weights, strict=True)))


class QueryPointLoss(DistillLoss):
    """[`query_point_loss`][] on points that both decoders are run on, times ``weight``.

    What the tap yields is not compared: both decoders run once more, with empty queries.

    Args:
        weight: Factor on all parts.
        points: ``'teacher'``, the boxes that the teacher's decoder begins with itself; or
            ``'random'``, boxes whose logits are drawn from a standard normal distribution, anew in
            each step.
        count: How many are drawn.
        classes: See [`query_point_loss`][], as for those that follow.

    Raises:
        ValueError: If an argument is not as said here.
    """

    of_queries = True
    all_maps = True
    adaptable = False
    needs = ('decoders',)
    parts = PARTS

    def __init__(
        self,
        weight: float = 1.0,
        points: Points = 'teacher',
        count: int = 300,
        classes: float = 1.0,
        l1: float = 5.0,
        giou: float = 2.0,
        temperature: float = 10.0,
        published_batch: int | None = 8,
    ) -> None:
        super().__init__(weight)
        check_choice('QueryPointLoss', 'points', points, Points)
        check_counts('QueryPointLoss', count=count)
        weights = (classes, l1, giou)
        self.weights = _check_arguments('QueryPointLoss', weights, temperature, published_batch)
        self.points: Points = points
        self.count = count
        self.temperature = temperature
        self.published_batch = published_batch

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], decoders: Decoders
    ) -> dict[str, Tensor]:
        ours, theirs = self.predictions(decoders)
        found = query_point_loss(
            ours,
            theirs,
            **self.weights,
            temperature=self.temperature,
            published_batch=self.published_batch,
        )
        return {name: self.weight * part for name, part in found.items()}

    def predictions(self, decoders: Decoders) -> tuple[list[Tensor], list[Tensor]]:
        """What student and teacher predict for the points."""
        boxes = decoders.boxes
        if self.points == 'random':
            drawn = torch.randn(self.count, 4, dtype=boxes.dtype, device=boxes.device)
            boxes = drawn.expand(len(boxes), -1, -1)
        return decoders.student(boxes), decoders.teacher(boxes)
