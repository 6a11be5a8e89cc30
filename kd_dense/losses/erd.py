"""Elastic response distillation (ERD): what a dense head knew, while it learns new classes.

Feng, Wang, Yuan, "Overcoming Catastrophic Forgetting in Incremental Object Detection via Elastic
Response Distillation", CVPR 2022. https://arxiv.org/abs/2204.02136

Source: Hi-FT/ERD (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_dense.functional import check_published_batch, check_temperature, published_sum
from kd_dense.losses.base import MMDET_EPS, DistillLoss, check_counts, check_weights
from kd_dense.losses.ld.ld import mean_kl
from kd_dense.losses.predictions.boxes import (
    HeadBoxes,
    decode_distances,
    expected_distances,
    rows_of_priors,
)

__all__ = [
    'ERDLoss',
    'Rows',
    'Selected',
    'erd_loss',
    'erd_rows',
    'kept_by_class',
    'rows_of_heads',
    'select',
]

# Rounds in which boxes are dropped: as many as boxes drop one another in a row. An odd number
# keeps too few where that is not enough, and none too many.
ROUNDS = 33
FACTOR = 4.0  # what the authors' code divides by


def erd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_boxes: HeadBoxes,
    classes: float = 1.0,
    boxes: float = 0.25,
    temperature: float = 10.0,
    sigmas: float = 2.0,
    max_iou: float = 0.005,
    candidates: int = 500,
    without_strides: bool = False,
    published_batch: int | None = 2,
) -> dict[str, Tensor]:
    r"""Keep the teacher's strong responses to its own classes.

    The teacher's K classes are the student's first ones. With its largest logit of a class
    $m_i = \max_{k < K} \mathrm{sigmoid}(t_{i,k})$ at each prior i of an image, and its largest
    logit $d_i$ of the distributions of the four sides, these priors respond strongly:

    $$
    C = \{i : m_i > \bar m + 2 \sigma_m\}, \qquad B = \{i : d_i > \bar d + 2 \sigma_d\}
    $$

    Of B, boxes of one class that overlap a likelier one are left out, so that B' remains. The
    parts are, added up over the images,

    $$
    \mathrm{classes} = \frac{w_c}{|C|\,K} \sum_{i \in C} \sum_{k < K} (s_{i,k} - t_{i,k})^2,
    \qquad
    \mathrm{boxes} = \frac{w_b}{4} \sum_{i \in B'} p_i \ell_i
    $$

    with the logits s and t, the likelihood $p_i = \max_{k < K} \mathrm{sigmoid}(s_{i,k})$ without
    gradient, and $\ell_i$ as in [`kd_dense.losses.ld.ld.ld_loss`][]: the divergence of the
    softened distributions times $T^2 / (n + 1)$, summed over the sides.

    Args:
        student: What the head yields, L levels: L maps of class logits
            ``(N, A * (K + new), H, W)``, then L of distributions ``(N, A * 4 * (n + 1), H, W)``.
        teacher: The same of K classes. No gradient flows into it.
        head_boxes: What makes boxes of the maps of distributions.
        classes: $w_c$.
        boxes: $w_b$.
        temperature: T of the divergence, ``> 0``.
        sigmas: How many standard deviations above the mean a strong response is.
        max_iou: Boxes of one class that overlap a likelier one more than this are left out.
        candidates: How many boxes of an image this is done with, the likeliest. In the authors'
            code it is all of them, on COCO some hundreds; the others have next to no $p_i$.
        without_strides: Whether boxes are made without the strides of their levels, as in the
            authors' code: they are tiny, so that hardly one is left out.
        published_batch: How many images the authors had on a GPU, which their sum belongs to: see
            [`kd_dense.functional.published_sum`][].

    Returns:
        ``classes`` and ``boxes``, scalars, at least float32. Where no prior responds, 0.

    Raises:
        ValueError: If maps are missing, differ in their positions, have no distributions, or the
            student has fewer classes; or if an argument is out of range.

    Examples:
        >>> from kd_dense.losses.predictions.boxes import Decoded
        >>> priors = [8.0 * torch.arange(64).view(-1, 1).repeat(1, 2)]
        >>> decode = lambda maps: Decoded(priors, [torch.zeros(1, 64, 4)])
        >>> teacher = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, 8)]
        >>> teacher[0][..., 3, 3] = 4.0
        >>> student = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, 8)]
        >>> erd_loss(student, teacher, HeadBoxes(decode, decode), published_batch=None)
        {'classes': tensor(16.), 'boxes': tensor(0.)}
    """
    check_temperature(temperature)
    found = rows_of_heads(student, teacher, head_boxes, without_strides)
    values = erd_rows(found, temperature, sigmas, max_iou, candidates)
    weights = classes, boxes
    images = len(found.boxes)
    return {
        part: weight * published_sum(rows.sum(), images, published_batch)
        for (part, rows), weight in zip(values.items(), weights, strict=True)
    }


def erd_rows(
    rows: Rows,
    temperature: float = 10.0,
    sigmas: float = 2.0,
    max_iou: float = 0.005,
    candidates: int = 500,
) -> dict[str, Tensor]:
    """What each prior adds to the parts of [`erd_loss`][] with weights of 1, ``(N, A)``."""
    old = rows.student_classes[..., : rows.teacher_classes.shape[-1]]
    strong = select(rows, sigmas)
    squares = (old - rows.teacher_classes).square().mean(-1)
    count = strong.classes.sum(1, keepdim=True)

    few = min(candidates, strong.boxes.shape[1])
    scores, chosen = strong.scores.where(strong.boxes, -1).topk(few, 1)
    kept = kept_by_class(
        scores,
        rows.boxes.take_along_dim(chosen[..., None], 1),
        strong.labels.take_along_dim(chosen, 1),
        max_iou,
    )
    s, t = (
        x.take_along_dim(chosen[..., None], 1).unflatten(-1, (4, -1))
        for x in (rows.student_boxes, rows.teacher_boxes)
    )
    apart = mean_kl(s, t, temperature, dim=-1).sum(-1)
    likely = old.detach().amax(-1).sigmoid().take_along_dim(chosen, 1)
    values = (apart * likely).where(kept, 0) / (FACTOR + MMDET_EPS)
    # Of what is no number nothing is selected: the loss has to tell.
    sound = 0 * (rows.teacher_classes.mean((1, 2)) + rows.teacher_boxes.mean((1, 2)))
    squares = squares.where(strong.classes, 0) / count.where(count > 0, 1)
    return {
        'classes': squares + sound[:, None],
        'boxes': torch.zeros_like(squares).scatter(1, chosen, values),
    }


class Rows(NamedTuple):
    """What two heads yield for each prior, over all levels."""

    student_classes: Tensor  # (N, A, K + new)
    teacher_classes: Tensor  # (N, A, K)
    student_boxes: Tensor  # (N, A, 4 (n + 1))
    teacher_boxes: Tensor
    boxes: Tensor  # the teacher's, (N, A, 4)


class Selected(NamedTuple):
    """Where a teacher responds strongly, ``(N, A)`` each.

    Attributes:
        classes: Whether one of its classes is likely.
        boxes: Whether a side of its box is sure.
        scores: How likely its likeliest class is.
        labels: Which class that is.
    """

    classes: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def select(rows: Rows, sigmas: float) -> Selected:
    """Find the priors at which a teacher responds strongly, image by image."""
    scores, labels = rows.teacher_classes.sigmoid().max(-1)
    sure = rows.teacher_boxes.amax(-1)
    return Selected(_outliers(scores, sigmas), _outliers(sure, sigmas), scores, labels)


def _outliers(values: Tensor, sigmas: float) -> Tensor:
    mean, std = values.mean(1, keepdim=True), values.std(1, keepdim=True)
    return values > mean + sigmas * std


@torch.no_grad()
def kept_by_class(scores: Tensor, boxes: Tensor, labels: Tensor, max_iou: float) -> Tensor:
    """Greedy non-maximum suppression within each class.

    A box is decided on when those that are likelier and overlap it are: in a fixed number of
    rounds, so that nobody waits for the device. A box that is left open is dropped.

    Args:
        scores: Falling, ``(N, k)``; a box with a negative score is never kept.
        boxes: ``(N, k, 4)``.
        labels: ``(N, k)``.
        max_iou: Boxes that overlap a kept one more than this are dropped.

    Returns:
        Which are kept, ``(N, k)``, bool.

    Examples:
        >>> boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 6]]])
        >>> kept_by_class(torch.tensor([[0.9, 0.8, 0.7]]), boxes, torch.tensor([[0, 1, 0]]), 0.5)
        tensor([[ True,  True, False]])
    """
    left, top, right, bottom = boxes[..., None].unbind(2)
    width = (right.minimum(right.mT) - left.maximum(left.mT)).clamp_(min=0)
    height = (bottom.minimum(bottom.mT) - top.maximum(top.mT)).clamp_(min=0)
    shared = width.mul_(height)
    area = (right - left) * (bottom - top)
    drops = shared > max_iou * (area + area.mT - shared)
    drops &= labels[..., None] == labels[:, None]
    # Row j: which likelier ones drop box j.
    drops = drops.triu_(1).mT.to(scores.dtype).contiguous()
    valid = scores >= 0
    kept = valid
    for _ in range(ROUNDS):
        kept = valid & ~(drops @ kept[..., None].to(drops.dtype) > 0).squeeze(-1)
    return kept


def rows_of_heads(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_boxes: HeadBoxes,
    without_strides: bool,
) -> Rows:
    """Check the maps of two heads, and put them into rows."""
    levels = len(teacher) // 2
    if levels == 0 or len(student) != len(teacher) or len(teacher) % 2:
        raise ValueError(
            'erd_loss expects two kinds of maps on all levels, class logits and then box '
            f'distributions, as GFLHead yields them, got {len(student)} maps of the student and '
            f'{len(teacher)} of the teacher: tap the bbox_head'
        )
    teacher = [x.detach() for x in teacher]
    for s, t in zip(student, teacher, strict=True):
        if s.shape[::2] != t.shape[::2] or s.shape[3:] != t.shape[3:] or s.shape[1] < t.shape[1]:
            raise ValueError(
                'erd_loss expects maps of the same positions, and a student with the classes of '
                f'its teacher and more, got student {tuple(s.shape)} and teacher {tuple(t.shape)}'
            )
    decoded = head_boxes.teacher(teacher[levels:])
    anchors = [
        len(priors) // (x.shape[-2] * x.shape[-1])
        for priors, x in zip(decoded.priors, teacher[:levels], strict=True)
    ]
    parts = [
        torch.cat([rows_of_priors(x, k) for x, k in zip(maps, anchors, strict=True)], 1)
        for maps in (student[:levels], teacher[:levels], student[levels:], teacher[levels:])
    ]
    if parts[2].shape != parts[3].shape or parts[3].shape[-1] <= 4 or parts[3].shape[-1] % 4:
        raise ValueError(
            'erd_loss expects distributions of the four sides of a box, as GFLHead yields them, '
            f'4 * (n + 1) numbers for each prior, got {parts[2].shape[-1]} of the student and '
            f'{parts[3].shape[-1]} of the teacher'
        )
    boxes = torch.cat(decoded.boxes, 1)
    if without_strides:
        boxes = decode_distances(torch.cat(decoded.priors), expected_distances(parts[3]))
    return Rows(parts[0], parts[1], parts[2], parts[3], boxes)


class ERDLoss(DistillLoss):
    """Module form of [`erd_loss`][], times ``weight``.

    The student's own loss is for its head, which learns the new classes alone:
    ``kd_dense.IncrementalGFLHead``.

    Args:
        weight: Factor on all parts.
        classes: See [`erd_loss`][], as the other arguments.

    Examples:
        >>> ERDLoss(boxes=0.5).parts
        ('classes', 'boxes')
    """

    needs = ('head_boxes',)
    parts = ('classes', 'boxes')
    all_maps = True
    any_channels = True
    extra_classes = True
    adaptable = False

    def __init__(
        self,
        weight: float = 1.0,
        classes: float = 1.0,
        boxes: float = 0.25,
        temperature: float = 10.0,
        sigmas: float = 2.0,
        max_iou: float = 0.005,
        candidates: int = 500,
        without_strides: bool = False,
        published_batch: int | None = 2,
    ) -> None:
        super().__init__(weight)
        check_weights('ERDLoss', classes=classes, boxes=boxes)
        check_temperature(temperature)
        check_published_batch('ERDLoss', published_batch)
        check_counts('ERDLoss', candidates=candidates)
        self.settings = dict(
            classes=classes,
            boxes=boxes,
            temperature=temperature,
            sigmas=sigmas,
            max_iou=max_iou,
            candidates=candidates,
            without_strides=without_strides,
            published_batch=published_batch,
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], head_boxes: HeadBoxes
    ) -> dict[str, Tensor]:
        found = erd_loss(student, teacher, head_boxes, **self.settings)  # type: ignore[arg-type]
        return {part: self.weight * value for part, value in found.items()}
