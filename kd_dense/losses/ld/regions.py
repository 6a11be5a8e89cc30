"""Where localization distillation looks: regions of priors around the ground truth.

A region is a tensor ``(N, A)`` over all priors of all levels. As many boxes as fit are compared
with all priors at a time; no function here loops over images or waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_dense.functional import in_blocks

__all__ = [
    'DIoU',
    'box_iou',
    'box_overlaps',
    'centers',
    'fine_grained_region',
    'inside_region',
    'nearby_region',
    'non_maximum_suppression',
    'pad_boxes',
    'vlr_region',
]

DIoU = Literal['paper', 'code']


def pad_boxes(boxes: list[Tensor]) -> Tensor:
    """Stack the boxes of each image, ``(n, 4)``, into ``(N, G, 4)`` with the largest n as G.

    The boxes that are missing are zeros: a box without area belongs to no region.

    Examples:
        >>> pad_boxes([torch.ones(2, 4), torch.zeros(0, 4)]).shape
        torch.Size([2, 2, 4])
    """
    return pad_sequence(boxes, batch_first=True)


def _blocks(boxes: list[Tensor], priors: int) -> Iterator[Tensor]:
    """The boxes of [`pad_boxes`][], some of each image at a time."""
    padded = pad_boxes(boxes)
    images, count, _ = padded.shape
    if count:
        for (some,) in in_blocks(padded, dim=1, width=images * priors, dtype=padded.dtype):
            yield some


def _join(priors: list[Tensor]) -> Tensor:
    """The priors of all levels, stored coordinate by coordinate: that is faster to read."""
    return torch.cat([level.T for level in priors], 1).T


def centers(priors: Tensor) -> Tensor:
    """Centres x, y of anchor boxes ``(A, 4)``; points ``(A, 2)`` are their own centres."""
    return priors if priors.shape[-1] == 2 else (priors[..., :2] + priors[..., 2:]) / 2


class Overlaps(NamedTuple):
    """Each anchor with each box, ``(N, G, A)``: IoU, DIoU, squared distance of the centres."""

    iou: Tensor
    diou: Tensor
    distance: Tensor


def box_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of each anchor with each box.

    Args:
        anchors: x1, y1, x2, y2, ``(A, 4)``.
        boxes: ``(N, G, 4)``.

    Returns:
        ``(N, G, A)``.

    Examples:
        >>> anchors = torch.tensor([[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 5.0, 5.0]])
        >>> box_iou(anchors, torch.tensor([[[0.0, 0.0, 2.0, 1.0]]]))
        tensor([[[0.5000, 0.0000]]])
    """
    left, top, right, bottom = anchors.unbind(-1)
    box_left, box_top, box_right, box_bottom = boxes[..., None, :].unbind(-1)
    width = right.minimum(box_right).sub_(left.maximum(box_left)).clamp_(min=0)
    height = bottom.minimum(box_bottom).sub_(top.maximum(box_top)).clamp_(min=0)
    intersection = width.mul_(height)
    anchor_area = (right - left) * (bottom - top)
    box_area = (box_right - box_left) * (box_bottom - box_top)
    return intersection.div_((anchor_area + box_area).sub_(intersection))


def box_overlaps(anchors: Tensor, boxes: Tensor, diou: DIoU = 'paper') -> Overlaps:
    r"""Overlaps and distances of each anchor and each box.

    $$
    \mathrm{DIoU} = \mathrm{IoU} - d^2 / c^2
    $$

    with the distance $d$ of the centres and the diagonal $c$ of the smallest box
    that encloses both.

    Args:
        anchors: ``(A, 4)``.
        boxes: ``(N, G, 4)``.
        diou: ``'paper'`` is the equation. ``'code'`` reproduces the calculator of the authors'
            code, where the overlap is divided by the area of the anchor, not of the union.

    Returns:
        IoU, DIoU and $d^2$ in square pixels, ``(N, G, A)`` each.

    Examples:
        >>> anchor = torch.tensor([[0.0, 0.0, 3.0, 2.0]])
        >>> box = torch.tensor([[[0.0, 0.0, 3.0, 4.0]]])
        >>> box_overlaps(anchor, box).diou
        tensor([[[0.4600]]])
        >>> box_overlaps(anchor, box, 'code').diou
        tensor([[[0.9600]]])
    """
    # In place, because there may be millions of pairs: few maps of them exist at a time. What
    # has two entries in front is of both axes.
    low, high = anchors.T[:, None, None].split(2)
    box_low, box_high = boxes.movedim(-1, 0)[..., None].split(2)
    size, box_size = high - low, box_high - box_low
    shared = high.minimum(box_high).sub_(low.maximum(box_low))
    # The box that encloses both is as wide as both together, less what they share.
    outer = (size + box_size).sub_(shared)
    diagonal = outer[0].square_().addcmul_(outer[1], outer[1])
    shared.clamp_(min=0)
    intersection = shared[0].mul_(shared[1])
    area = size[0] * size[1]
    union = (area + box_size[0] * box_size[1]).sub_(intersection)
    iou = torch.div(intersection, union, out=union)
    apart = torch.sub((low + high) / 2, (box_low + box_high) / 2)
    distance = apart[0].square_().addcmul_(apart[1], apart[1])
    overlap = intersection.div_(area) if diou == 'code' else iou
    return Overlaps(iou, torch.addcdiv(overlap, distance, diagonal, value=-1), distance)


def _require_anchors(name: str, priors: list[Tensor]) -> None:
    for level in priors:
        if level.shape[-1] != 4:
            raise ValueError(
                f'{name} expects anchor boxes (A, 4), got priors {tuple(level.shape)}: a head '
                "without anchors has no overlaps; take the region 'inside'"
            )


@torch.no_grad()
def vlr_region(
    priors: list[Tensor],
    valid: Tensor,
    boxes: list[Tensor],
    topk: int = 9,
    diou: DIoU = 'paper',
) -> Tensor:
    r"""Weights of the valuable localization region (VLR).

    The anchors that are near a box, but not near enough to be its positives: each box
    selects, of all levels, the anchors with

    $$
    0.25\, \alpha \le \mathrm{DIoU} < \alpha,
    $$

    where $\alpha$ is the threshold of ATSS, the mean plus the standard deviation of the
    IoU of the ``topk`` anchors of each level that are nearest to the centre of the box.

    An anchor may belong to the region of one box and be a positive of another, or of the same.

    Args:
        priors: Anchors of each level, ``(A, 4)``.
        valid: Which of them lie in the image, ``(N, A)`` over all levels. Others are neither
            candidates nor members.
        boxes: Ground truth of each image, ``(n, 4)``; n may be 0.
        topk: How many anchors of a level set the threshold.
        diou: See [`box_overlaps`][].

    Returns:
        The largest IoU with a box that selects the anchor, 0 elsewhere, ``(N, A)``.

    Raises:
        ValueError: If the priors are points.

    Examples:
        >>> x = torch.arange(0.0, 64.0, 8.0)
        >>> anchors = torch.stack([x, 0 * x, x + 32, 0 * x + 32], 1)
        >>> box = torch.tensor([[20.0, 0.0, 52.0, 32.0]])
        >>> vlr_region([anchors], torch.ones(1, 8, dtype=torch.bool), [box])
        tensor([[0.0000, 0.4545, 0.0000, 0.0000, 0.4545, 0.0000, 0.0000, 0.0000]])
    """
    return _near_boxes('vlr_region', priors, valid, boxes, topk, diou)


def _near_boxes(
    owner: str,
    priors: list[Tensor],
    valid: Tensor,
    boxes: list[Tensor],
    topk: int,
    diou: DIoU | None,
) -> Tensor:
    """The largest IoU with a box that an anchor is near to; not too near, by such a DIoU."""
    _require_anchors(owner, priors)
    anchors, sizes = _join(priors), [len(level) for level in priors]
    outside = ~valid[:, None]
    found = []
    for some in _blocks(boxes, len(anchors)):
        iou, closeness, distance = box_overlaps(anchors, some, diou or 'paper')
        threshold = _atss_threshold(iou, distance.masked_fill_(outside, float('inf')), sizes, topk)
        selected = (closeness if diou else iou) >= 0.25 * threshold
        if diou:
            selected.logical_and_(closeness < threshold)
        iou.masked_fill_(selected.logical_not_().logical_or_(outside), 0)
        found.append(iou.amax(1))
    return reduce(torch.maximum, found) if found else anchors.new_zeros(valid.shape)


def _atss_threshold(iou: Tensor, distance: Tensor, sizes: list[int], topk: int) -> Tensor:
    """The mean plus the deviation of the IoU of the nearest anchors of each level, (N, G, 1)."""
    nearest, away = [], []
    for level, overlap in zip(distance.split(sizes, -1), iou.split(sizes, -1), strict=True):
        far, index = level.topk(min(topk, level.shape[-1]), largest=False, sorted=False)
        nearest.append(overlap.gather(-1, index))
        away.append(far)
    candidates, weights = torch.cat(nearest, -1), torch.cat(away, -1) < float('inf')
    count = weights.sum(-1, keepdim=True)
    mean = (candidates * weights).sum(-1, keepdim=True) / count
    norm = torch.linalg.vector_norm((candidates - mean) * weights, dim=-1, keepdim=True)
    threshold: Tensor = mean + norm / (count - 1).sqrt()
    return threshold


@torch.no_grad()
def nearby_region(
    priors: list[Tensor], valid: Tensor, boxes: list[Tensor], topk: int = 9
) -> Tensor:
    r"""Weights of the main and the valuable localization region in one.

    Each box selects, of all levels, the anchors with

    $$
    0.25\, \alpha \le \mathrm{IoU}
    $$

    and the $\alpha$ of [`vlr_region`][].

    Args:
        priors: Anchors of each level, ``(A, 4)``.
        valid: Which of them lie in the image, ``(N, A)`` over all levels.
        boxes: Ground truth of each image, ``(n, 4)``; n may be 0.
        topk: How many anchors of a level set the threshold.

    Returns:
        The largest IoU with a box that selects the anchor, 0 elsewhere, ``(N, A)``.

    Raises:
        ValueError: If the priors are points.

    Examples:
        >>> x = torch.arange(0.0, 64.0, 8.0)
        >>> anchors = torch.stack([x, 0 * x, x + 32, 0 * x + 32], 1)
        >>> box = torch.tensor([[20.0, 0.0, 52.0, 32.0]])
        >>> nearby_region([anchors], torch.ones(1, 8, dtype=torch.bool), [box])
        tensor([[0.2308, 0.4545, 0.7778, 0.7778, 0.4545, 0.2308, 0.0000, 0.0000]])
    """
    return _near_boxes('nearby_region', priors, valid, boxes, topk, diou=None)


@torch.no_grad()
def inside_region(priors: list[Tensor], valid: Tensor, boxes: list[Tensor]) -> Tensor:
    """Which priors have their centre strictly inside a box.

    Args:
        priors: Anchors ``(A, 4)`` or points ``(A, 2)`` of each level.
        valid: ``(N, A)`` over all levels.
        boxes: Ground truth of each image, ``(n, 4)``; n may be 0.

    Returns:
        ``(N, A)``, bool.

    Examples:
        >>> points, valid = torch.tensor([[4.0, 4.0], [12.0, 4.0]]), torch.ones(1, 2).bool()
        >>> inside_region([points], valid, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])])
        tensor([[ True, False]])
    """
    x, y = centers(_join(priors)).unbind(-1)
    region = torch.zeros_like(valid)
    for some in _blocks(boxes, len(x)):
        left, top, right, bottom = some[..., None, :].unbind(-1)
        inside = (x > left).logical_and_(x < right)
        region |= inside.logical_and_(y > top).logical_and_(y < bottom).any(1)
    return region & valid


@torch.no_grad()
def fine_grained_region(priors: list[Tensor], valid: Tensor, boxes: list[Tensor]) -> Tensor:
    """Which anchors overlap a box more than half as well as its best anchor does.

    Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019.

    Args:
        priors: Anchors of each level, ``(A, 4)``.
        valid: ``(N, A)`` over all levels.
        boxes: Ground truth of each image, ``(n, 4)``; n may be 0.

    Returns:
        ``(N, A)``, bool.

    Raises:
        ValueError: If the priors are points.

    Examples:
        >>> anchors, valid = torch.tensor([[0.0, 0, 8, 8], [6, 0, 14, 8]]), torch.ones(1, 2).bool()
        >>> fine_grained_region([anchors], valid, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])])
        tensor([[ True, False]])
    """
    _require_anchors('fine_grained_region', priors)
    anchors = _join(priors)
    region = torch.zeros_like(valid)
    for some in _blocks(boxes, len(anchors)):
        iou = box_iou(anchors, some).mul_(valid[:, None])
        region |= (iou > 0.5 * iou.amax(-1, keepdim=True)).any(1)
    return region


@torch.no_grad()
def non_maximum_suppression(scores: Tensor, boxes: Tensor, count: int, max_iou: float) -> Tensor:
    """Greedy non-maximum suppression that keeps a fixed number of boxes of each image.

    Args:
        scores: ``(N, A)``, ``>= 0``; a box with a negative score is never kept.
        boxes: ``(N, A, 4)``.
        count: How many to keep at most.
        max_iou: Boxes that overlap a kept box more than this are dropped.

    Returns:
        Which boxes are kept, ``(N, A)``, bool.

    Examples:
        >>> boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [8, 8, 9, 9]]])
        >>> non_maximum_suppression(torch.tensor([[0.3, 0.2, 0.1]]), boxes, count=10, max_iou=0.3)
        tensor([[ True, False,  True]])
    """
    kept, scores = torch.zeros_like(scores, dtype=torch.bool), scores.clone()
    left, top, right, bottom = (x.contiguous() for x in boxes.unbind(-1))
    area = (right - left) * (bottom - top)
    for _ in range(min(count, scores.shape[1])):
        best, index = scores.max(1, keepdim=True)
        kept.scatter_(1, index, kept.gather(1, index) | (best >= 0))
        scores.scatter_(1, index, -1)
        a, b, c, d = (x.gather(1, index) for x in (left, top, right, bottom))
        width = right.minimum(c).sub_(left.maximum(a)).clamp_(min=0)
        shared = bottom.minimum(d).sub_(top.maximum(b)).clamp_(min=0).mul_(width)
        union = (area + area.gather(1, index)).sub_(shared)
        scores.masked_fill_(shared > max_iou * union, -1)
    return kept
