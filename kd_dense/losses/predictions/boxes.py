"""Boxes: how the numbers that a dense head predicts become boxes, and how boxes overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32
from kd_dense.losses.ld.regions import centers

__all__ = [
    'Decoded',
    'HeadBoxes',
    'Overlap',
    'decode_deltas',
    'decode_distances',
    'expected_distances',
    'overlap',
    'overlap_loss',
    'rows_of_priors',
]


class Decoded(NamedTuple):
    """The priors of a dense head and the boxes that it predicts for them, level by level.

    Attributes:
        priors: Anchors ``(A, 4)`` or points ``(A, 2)`` of each level, in pixels.
        boxes: x1, y1, x2, y2 in pixels, ``(N, A, 4)`` of each level, at least float32.
    """

    priors: list[Tensor]
    boxes: list[Tensor]


class HeadBoxes(NamedTuple):
    """What makes boxes of what two dense heads yield.

    Both take the maps of box numbers, ``(N, K * 4, H, W)`` or, of distributions,
    ``(N, K * 4 * (n + 1), H, W)`` of each level, in the form in which the head yields them in this
    step. Gradients flow through.

    Attributes:
        student: For the maps of the student's head.
        teacher: For those of the teacher's.
    """

    student: Callable[[Sequence[Tensor]], Decoded]
    teacher: Callable[[Sequence[Tensor]], Decoded]


def rows_of_priors(maps: Tensor, anchors: int) -> Tensor:
    """From ``(N, K * n, H, W)`` to ``(N, H * W * K, n)``: a row for each prior.

    Examples:
        >>> rows_of_priors(torch.arange(8.0).view(1, 4, 1, 2), anchors=2)
        tensor([[[0., 2.],
                 [4., 6.],
                 [1., 3.],
                 [5., 7.]]])
    """
    rows = at_least_float32(maps).unflatten(1, (anchors, -1)).flatten(3)
    found: Tensor = rows.permute(0, 3, 1, 2).flatten(1, 2)
    return found


def expected_distances(rows: Tensor) -> Tensor:
    r"""The mean of the distribution of each side, $\sum_i i\,\sigma(x)_i$.

    Args:
        rows: Logits, ``(N, A, 4 * (n + 1))``.

    Returns:
        ``(N, A, 4)``, in strides.

    Examples:
        >>> expected_distances(torch.zeros(1, 1, 4 * 3))
        tensor([[[1., 1., 1., 1.]]])
    """
    sides = rows.unflatten(-1, (4, -1)).softmax(-1)
    bins = torch.arange(sides.shape[-1], device=rows.device, dtype=rows.dtype)
    mean: Tensor = (sides * bins).sum(-1)
    return mean


def decode_distances(priors: Tensor, distances: Tensor) -> Tensor:
    """Boxes of which the distances of the sides from the centres of the priors are known.

    Args:
        priors: Anchors ``(A, 4)`` or points ``(A, 2)``.
        distances: Left, top, right, bottom, ``(N, A, 4)``, in the unit of the priors.

    Examples:
        >>> decode_distances(torch.tensor([[8.0, 8.0]]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        tensor([[[ 7.,  6., 11., 12.]]])
    """
    middle = centers(priors)
    return torch.cat([middle - distances[..., :2], middle + distances[..., 2:]], -1)


def decode_deltas(
    anchors: Tensor,
    deltas: Tensor,
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    largest_ratio: float = 1000 / 16,
    largest_shift: float | None = None,
) -> Tensor:
    r"""Boxes of which shift and growth against their anchors are known.

    $$
    x = x_a + w_a d_x, \qquad w = w_a \exp d_w
    $$

    Args:
        anchors: ``(A, 4)``.
        deltas: $d_x, d_y, d_w, d_h$, normalised, ``(N, A, 4)``.
        means: What was subtracted from the deltas.
        stds: What they were divided by then.
        largest_ratio: A side is at most so many times as long as the anchor's, and at least the
            same part of it.
        largest_shift: In pixels; then a side may become as short as it likes, as in YOLOF.

    Examples:
        >>> anchor = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> decode_deltas(anchor, torch.tensor([[[0.5, 0.0, 0.0, 0.0]]]))
        tensor([[[ 4.,  0., 12.,  8.]]])
    """
    dx, dy, dw, dh = (
        d * std + mean for d, std, mean in zip(deltas.unbind(-1), stds, means, strict=True)
    )
    limit = math.log(largest_ratio)
    x, y = centers(anchors).unbind(-1)
    width, height = (anchors[..., 2:] - anchors[..., :2]).unbind(-1)
    shift = [dx * width, dy * height]
    if largest_shift is None:
        dw, dh = (d.clamp(-limit, limit) for d in (dw, dh))
    else:
        shift = [d.clamp(-largest_shift, largest_shift) for d in shift]
        dw, dh = (d.clamp(max=limit) for d in (dw, dh))
    x, y = x + shift[0], y + shift[1]
    half_width, half_height = width * dw.exp() / 2, height * dh.exp() / 2
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


class Overlap(NamedTuple):
    """How pairs of boxes overlap: intersection over union, plain and generalised."""

    iou: Tensor
    giou: Tensor


def overlap(one: Tensor, other: Tensor, eps: float = 1e-6) -> Overlap:
    """Compare boxes pair by pair.

    Args:
        one: x1, y1, x2, y2, ``(..., 4)``.
        other: Boxes that broadcast with these.
        eps: The least area that is divided by.

    Returns:
        IoU and GIoU, of the shape of the boxes without the last dimension.

    Examples:
        >>> one, other = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([2.0, 0.0, 6.0, 4.0])
        >>> overlap(one, other)
        Overlap(iou=tensor(0.3333), giou=tensor(0.3333))
    """
    left, top, right, bottom = one.unbind(-1)
    left2, top2, right2, bottom2 = other.unbind(-1)
    width = (right.minimum(right2) - left.maximum(left2)).clamp(min=0)
    height = (bottom.minimum(bottom2) - top.maximum(top2)).clamp(min=0)
    shared = width * height
    area = (right - left) * (bottom - top) + (right2 - left2) * (bottom2 - top2)
    union = (area - shared).clamp(min=eps)
    iou = shared / union
    hull = (right.maximum(right2) - left.minimum(left2)) * (
        bottom.maximum(bottom2) - top.minimum(top2)
    )
    hull = hull.clamp(min=eps)
    return Overlap(iou, iou - (hull - union) / hull)


def overlap_loss(one: Tensor, other: Tensor, kind: str) -> Tensor:
    """``'giou'``: 1 - GIoU; ``'iou'``: minus the logarithm of the IoU. For each pair of boxes.

    Examples:
        >>> one, other = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([2.0, 0.0, 6.0, 4.0])
        >>> overlap_loss(one, other, 'giou'), overlap_loss(one, other, 'iou')
        (tensor(0.6667), tensor(1.0986))
    """
    found = overlap(one, other)
    return 1 - found.giou if kind == 'giou' else -found.iou.clamp(min=1e-6).log()
