"""Where localization distillation looks: regions of priors around the ground truth.

A region is a tensor ``(N, A)`` over all priors of all levels. No function here loops over boxes
or images, or waits for the device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = [
    'DIoU',
    'box_iou',
    'box_overlaps',
    'centers',
    'fine_grained_region',
    'inside_region',
    'non_maximum_suppression',
    'pad_boxes',
    'vlr_region',
]

DIoU = Literal['paper', 'code']


def pad_boxes(boxes: list[Tensor]) -> Tensor:
    """Stack the boxes of each image, ``(n, 4)``, into ``(N, G, 4)`` with the largest n as G.

    The boxes that are missing are zeros: a box without area belongs to no region.

    Example:
        >>> pad_boxes([torch.ones(2, 4), torch.zeros(0, 4)]).shape
        torch.Size([2, 2, 4])
    """
    return pad_sequence(boxes, batch_first=True)


def centers(priors: Tensor) -> Tensor:
    """Centres x, y of anchor boxes ``(A, 4)``; points ``(A, 2)`` are their own centres."""
    return priors if priors.shape[-1] == 2 else (priors[..., :2] + priors[..., 2:]) / 2


def _intersection_and_areas(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, top, right, bottom = anchors.unbind(-1)
    box_left, box_top, box_right, box_bottom = boxes[..., None, :].unbind(-1)
    width = right.minimum(box_right).sub_(left.maximum(box_left)).clamp_(min=0)
    height = bottom.minimum(box_bottom).sub_(top.maximum(box_top)).clamp_(min=0)
    box_area = (box_right - box_left) * (box_bottom - box_top)
    return width.mul_(height), (right - left) * (bottom - top), box_area


class Overlaps(NamedTuple):
    """Each anchor with each box, ``(N, G, A)``: IoU, DIoU, squared distance of the centres."""

    iou: Tensor
    diou: Tensor
    distance: Tensor


def box_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of each anchor with each box.

    Args:
        anchors: x1, y1, x2, y2, ``(A, 4)``, or ``(N, 1, A, 4)`` to have others in each image.
        boxes: ``(N, G, 4)``.

    Returns:
        ``(N, G, A)``.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 5.0, 5.0]])
        >>> box_iou(anchors, torch.tensor([[[0.0, 0.0, 2.0, 1.0]]]))
        tensor([[[0.5000, 0.0000]]])
    """
    intersection, anchor_area, box_area = _intersection_and_areas(anchors, boxes)
    return intersection.div_((anchor_area + box_area).sub_(intersection))


def box_overlaps(anchors: Tensor, boxes: Tensor, diou: DIoU = 'paper') -> Overlaps:
    r"""Overlaps and distances of each anchor and each box.

    .. math:: \mathrm{DIoU} = \mathrm{IoU} - d^2 / c^2

    with the distance :math:`d` of the centres and the diagonal :math:`c` of the smallest box
    that encloses both.

    Args:
        anchors: ``(A, 4)``.
        boxes: ``(N, G, 4)``.
        diou: ``'paper'`` is the equation. ``'code'`` reproduces the calculator of the authors'
            code, where the overlap is divided by the area of the anchor, not of the union.

    Returns:
        IoU, DIoU and :math:`d^2` in square pixels, ``(N, G, A)`` each.

    Example:
        >>> anchor = torch.tensor([[0.0, 0.0, 3.0, 2.0]])
        >>> box = torch.tensor([[[0.0, 0.0, 3.0, 4.0]]])
        >>> box_overlaps(anchor, box).diou
        tensor([[[0.4600]]])
        >>> box_overlaps(anchor, box, 'code').diou
        tensor([[[0.9600]]])
    """
    # In place, because there may be millions of pairs: few maps of them exist at a time.
    intersection, anchor_area, box_area = _intersection_and_areas(anchors, boxes)
    union = (anchor_area + box_area).sub_(intersection)
    iou = intersection / union
    closeness = intersection.div_(anchor_area if diou == 'code' else union)
    del union
    left, top, right, bottom = anchors.unbind(-1)
    box_left, box_top, box_right, box_bottom = boxes[..., None, :].unbind(-1)
    diagonal = right.maximum(box_right).sub_(left.minimum(box_left)).square_()
    diagonal += bottom.maximum(box_bottom).sub_(top.minimum(box_top)).square_()
    x, y = centers(anchors).unbind(-1)
    box_x, box_y = centers(boxes)[..., None, :].unbind(-1)
    distance = (x - box_x).square_().add_((y - box_y).square_())
    return Overlaps(iou, closeness.addcdiv_(distance, diagonal, value=-1), distance)


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

    .. math:: 0.25\, \alpha \le \mathrm{DIoU} < \alpha,

    where :math:`\alpha` is the threshold of ATSS, the mean plus the standard deviation of the
    IoU of the ``topk`` anchors of each level that are nearest to the centre of the box.

    An anchor may belong to the region of one box and be a positive of another, or of the same.

    Args:
        priors: Anchors of each level, ``(A, 4)``.
        valid: Which of them lie in the image, ``(N, A)`` over all levels. Others are neither
            candidates nor members.
        boxes: Ground truth of each image, ``(n, 4)``; n may be 0.
        topk: How many anchors of a level set the threshold.
        diou: See :func:`box_overlaps`.

    Returns:
        The largest IoU with a box that selects the anchor, 0 elsewhere, ``(N, A)``.

    Raises:
        ValueError: If the priors are points.

    Example:
        >>> x = torch.arange(0.0, 64.0, 8.0)
        >>> anchors = torch.stack([x, 0 * x, x + 32, 0 * x + 32], 1)
        >>> box = torch.tensor([[20.0, 0.0, 52.0, 32.0]])
        >>> vlr_region([anchors], torch.ones(1, 8, dtype=torch.bool), [box])
        tensor([[0.0000, 0.4545, 0.0000, 0.0000, 0.4545, 0.0000, 0.0000, 0.0000]])
    """
    _require_anchors('vlr_region', priors)
    anchors, padded = torch.cat(priors), pad_boxes(boxes)
    if padded.shape[1] == 0:
        return anchors.new_zeros(valid.shape)
    iou, closeness, distance = box_overlaps(anchors, padded, diou)
    distance.masked_fill_(~valid[:, None], float('inf'))
    sizes = [len(level) for level in priors]
    nearest, known = [], []
    for level, overlap in zip(distance.split(sizes, -1), iou.split(sizes, -1), strict=True):
        far, index = level.topk(min(topk, level.shape[-1]), largest=False, sorted=False)
        nearest.append(overlap.gather(-1, index))
        known.append(far.isfinite())
    del distance, level
    candidates, weights = torch.cat(nearest, -1), torch.cat(known, -1)
    count = weights.sum(-1, keepdim=True)
    mean = (candidates * weights).sum(-1, keepdim=True) / count
    variance = ((candidates - mean).square() * weights).sum(-1, keepdim=True) / (count - 1)
    threshold = mean + variance.sqrt()
    selected = (closeness >= 0.25 * threshold).logical_and_(closeness < threshold)
    selected.logical_and_(valid[:, None])
    return iou.masked_fill_(selected.logical_not_(), 0).amax(1)


@torch.no_grad()
def inside_region(priors: list[Tensor], valid: Tensor, boxes: list[Tensor]) -> Tensor:
    """Which priors have their centre strictly inside a box.

    Args:
        priors: Anchors ``(A, 4)`` or points ``(A, 2)`` of each level.
        valid: ``(N, A)`` over all levels.
        boxes: Ground truth of each image, ``(n, 4)``; n may be 0.

    Returns:
        ``(N, A)``, bool.

    Example:
        >>> points, valid = torch.tensor([[4.0, 4.0], [12.0, 4.0]]), torch.ones(1, 2).bool()
        >>> inside_region([points], valid, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])])
        tensor([[ True, False]])
    """
    x, y = centers(torch.cat(priors)).unbind(-1)
    left, top, right, bottom = pad_boxes(boxes)[..., None, :].unbind(-1)
    return ((x > left) & (x < right) & (y > top) & (y < bottom)).any(1) & valid


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

    Example:
        >>> anchors, valid = torch.tensor([[0.0, 0, 8, 8], [6, 0, 14, 8]]), torch.ones(1, 2).bool()
        >>> fine_grained_region([anchors], valid, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])])
        tensor([[ True, False]])
    """
    _require_anchors('fine_grained_region', priors)
    iou = box_iou(torch.cat(priors), pad_boxes(boxes)) * valid[:, None]
    return (iou > 0.5 * iou.amax(-1, keepdim=True)).any(1)


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

    Example:
        >>> boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [8, 8, 9, 9]]])
        >>> non_maximum_suppression(torch.tensor([[0.3, 0.2, 0.1]]), boxes, count=10, max_iou=0.3)
        tensor([[ True, False,  True]])
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for _ in range(min(count, scores.shape[1])):
        best, index = scores.max(1, keepdim=True)
        picked = torch.zeros_like(kept).scatter_(1, index, best >= 0)
        kept |= picked
        box = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        overlap = box_iou(boxes[:, None], box)[:, 0]
        scores = scores.masked_fill(picked | (overlap > max_iou), -1)
    return kept
