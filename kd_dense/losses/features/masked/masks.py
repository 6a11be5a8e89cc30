"""The masks of masked imitation: scores of the teacher, objects, and anchors near objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32
from kd_dense.losses.ld.regions import fine_grained_region, pad_boxes

__all__ = ['Anchors', 'anchor_masks', 'object_masks', 'score_masks']


@torch.no_grad()
def score_masks(logits: Sequence[Tensor]) -> list[Tensor]:
    """How sure a head is that there is an object: its largest score at each position (FRS).

    Args:
        logits: Class logits of each level, ``(N, K, H, W)``: of all classes of all anchors, each
            a sigmoid.

    Returns:
        ``(N, 1, H, W)`` for each, 0 to 1, at least float32.

    Examples:
        >>> score_masks([torch.tensor([[[[0.0]], [[-2.0]]]])])
        [tensor([[[[0.5000]]]])]
    """
    return [at_least_float32(x.amax(1, keepdim=True)).sigmoid() for x in logits]


@torch.no_grad()
def object_masks(
    boxes: list[Tensor],
    sizes: Sequence[Sequence[int]],
    strides: Sequence[float],
    inclusive: bool = True,
    smallest: float = 0.0,
    side: float = 56.0,
) -> list[Tensor]:
    r"""Where objects lie, each on the one level of a pyramid that its size belongs to (DeFeat).

    An object of width w and height h lies on the level
    $\lfloor \log_2(\sqrt{w h} / a + 10^{-6}) \rfloor$, from 0 to the last one. It covers the
    positions from its left upper corner to before its right lower one, each divided by the stride
    and rounded down; where that is none, the position of the left upper corner.

    Args:
        boxes: Objects of each image, ``(n, 4)``: x1, y1, x2, y2 in pixels; n may be 0.
        sizes: ``(H, W)`` of each level.
        strides: Pixels from one position to the next, of each level.
        inclusive: Whether the right and lower edge are pixels of the object, which makes w and h
            larger by 1. The authors count so.
        smallest: Objects whose w or h is not larger are left out.
        side: $a$; objects of less than twice this side lie on the first level, whatever its
            stride.

    Returns:
        ``(N, 1, H, W)`` for each level, bool.

    Examples:
        >>> boxes = [torch.tensor([[0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 200.0, 90.0]])]
        >>> for mask in object_masks(boxes, [(2, 4), (1, 2)], [8, 16]):
        ...     print(mask.int().tolist())
        [[[[1, 1, 0, 0], [0, 0, 0, 0]]]]
        [[[[1, 1]]]]
    """
    padded = at_least_float32(pad_boxes(boxes))
    level = _levels(padded, len(sizes), inclusive, smallest, side)
    # All levels at once, in the space of the largest. A copy that does not make the host wait.
    numbers = [[*size, stride] for size, stride in zip(sizes, strides, strict=True)]
    known = torch.tensor(numbers, dtype=torch.double)
    *lengths, steps = known.to(padded.device, padded.dtype, non_blocking=True).T[..., None, None]
    first, end = (padded / steps[..., None]).trunc().split(2, -1)
    here = level == torch.arange(len(sizes), device=level.device)[:, None, None]
    spans, cells = [], []
    for axis, length in enumerate(reversed(lengths)):  # columns before rows
        place = torch.arange(max(size[1 - axis] for size in sizes), device=level.device)
        low, high = (x[..., axis, None] for x in (first, end))
        limit = length[..., None]
        spans.append((place >= low) & (place < high.minimum(limit)))
        cells.append(place == low.clamp(min=0).minimum(limit - 1))
    empty = ~(spans[0].any(-1) & spans[1].any(-1))[..., None]
    columns, rows = (torch.where(empty, *both) for both in zip(cells, spans, strict=True))
    covered = (rows & here[..., None]).to(padded.dtype).mT @ columns.to(padded.dtype)
    return [
        mask[:, None, :height, :width]
        for mask, (height, width) in zip(covered > 0, sizes, strict=True)
    ]


def _levels(
    boxes: Tensor, levels: int, inclusive: bool, smallest: float = 0.0, side: float = 56.0
) -> Tensor:
    """The level of each of ``(N, G, 4)`` boxes; -1 of those that are missing or too small."""
    sides = boxes[..., 2:] - boxes[..., :2]
    there = (sides > 0).all(-1)
    sides = sides + int(inclusive)
    there &= (sides > smallest).all(-1)
    level = torch.log2(sides.clamp(min=0).prod(-1).sqrt() / side + 1e-6).floor()
    return torch.where(there, level.clamp(0, levels - 1), -1).long()


class Anchors(NamedTuple):
    """The anchor boxes of a head.

    Attributes:
        base: Of each level, those of its first position, ``(K, 4)``: x1, y1, x2, y2 in pixels.
        strides: Of each level, pixels from a position to the next one, x and y.
    """

    base: Sequence[Tensor]
    strides: Sequence[tuple[float, float]]

    def at(self, level: int, size: Sequence[int]) -> Tensor:
        """All anchors of a level of ``(H, W)`` positions, position by position, ``(H W K, 4)``."""
        base, (stride_x, stride_y) = self.base[level], self.strides[level]
        y, x = (
            torch.arange(length, device=base.device, dtype=base.dtype) * stride
            for length, stride in zip(size, (stride_y, stride_x), strict=True)
        )
        rows, columns = (z.flatten() for z in torch.meshgrid(y, x, indexing='ij'))
        corners = torch.stack([columns, rows, columns, rows], 1)
        return (corners[:, None] + base).flatten(0, 1)


@torch.no_grad()
def anchor_masks(
    boxes: list[Tensor],
    sizes: Sequence[Sequence[int]],
    anchors: Anchors,
    inclusive: bool = True,
) -> list[Tensor]:
    """Where anchors overlap an object more than half as well as its best one does (FGFI).

    Each object lies on one level, as in [`object_masks`][], and its anchors are those of that
    level; a position counts if any of its anchors does.

    Args:
        boxes: Objects of each image, ``(n, 4)``: x1, y1, x2, y2 in pixels; n may be 0.
        sizes: ``(H, W)`` of each level.
        anchors: Of the same levels.
        inclusive: Whether the right and lower edges are pixels of objects and anchors. The
            authors count so.

    Returns:
        ``(N, 1, H, W)`` for each level, bool.

    Examples:
        >>> anchors = Anchors([torch.tensor([[0.0, 0.0, 7.0, 7.0]])], [(8, 8)])
        >>> anchor_masks([torch.tensor([[0.0, 0.0, 11.0, 7.0]])], [(1, 3)], anchors)
        [tensor([[[[ True, False, False]]]])]
    """
    padded = at_least_float32(pad_boxes(boxes))
    level = _levels(padded, len(sizes), inclusive=True)
    edge = padded.new_tensor([0, 0, 1, 1]) * int(inclusive)
    masks = []
    for index, size in enumerate(sizes):
        priors = anchors.at(index, size).to(padded.dtype) + edge
        # A box without area overlaps nothing.
        here = torch.where((level == index)[..., None], padded + edge, 0)
        valid = torch.ones(len(padded), len(priors), dtype=torch.bool, device=padded.device)
        region = fine_grained_region([priors], valid, [*here])
        masks.append(region.unflatten(1, (1, *size, -1)).any(-1))
    return masks
