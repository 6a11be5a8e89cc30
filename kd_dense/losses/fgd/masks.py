"""Which cells of maps lie on objects, and how much each of them weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ['box_masks', 'foregrounds']


@torch.no_grad()
def box_masks(
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Weigh the cells of a map by the objects that lie on them.

    A box covers the cells from the floor of its left and upper edge to the ceiling of its
    right and lower edge, both included (that is one cell more than it touches, as in the
    authors' code). A covered cell weighs 1 over the number of cells of the smallest box on it;
    cells of the box beyond the map are counted. The other cells of an image share a weight of 1.

    A box marks nothing if it has no area, ends left of or above the image, begins beyond the
    map, or is not finite.

    Args:
        boxes: For each image ``(n, 4)``: x1, y1, x2, y2 in pixels, ``n >= 0``.
        shapes: Height and width in pixels of what the map shows: one for all images, or one
            for each.
        size: Height and width of the map in cells.
        dtype: Of the masks.

    Returns:
        Foreground and background, both ``(N, H, W)``. Where one is positive, the other is 0.

    Raises:
        ValueError: If boxes are not ``(n, 4)``, or there is neither one shape nor one for
            each image.

    Examples:
        >>> boxes = [torch.tensor([[8.0, 0.0, 15.0, 8.0]])]
        >>> foreground, background = box_masks(boxes, shapes=[(16, 24)], size=(2, 3))
        >>> foreground
        tensor([[[0.0000, 0.2500, 0.2500],
                 [0.0000, 0.2500, 0.2500]]])
        >>> background
        tensor([[[0.5000, 0.0000, 0.0000],
                 [0.5000, 0.0000, 0.0000]]])
    """
    foreground = foregrounds(boxes, shapes, [size], dtype).view(-1, *size)
    background = (foreground == 0).to(dtype)
    background /= background.sum((1, 2), keepdim=True).clamp(min=1)
    return foreground, background


@torch.no_grad()
def foregrounds(
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The first mask of [`box_masks`][] for maps of several sizes, in as many steps as for one.

    Args:
        boxes: As of [`box_masks`][], with all other arguments.
        shapes: Of the images.
        sizes: Height and width of each map in cells.
        dtype: Of the mask.

    Returns:
        ``(N, positions)``: map by map, row by row.

    Raises:
        ValueError: As of [`box_masks`][].
    """
    wrong = [tuple(b.shape) for b in boxes if b.dim() != 2 or b.shape[1] != 4]
    if wrong:
        raise ValueError(f'box_masks expects boxes of shape (n, 4) for each image, got {wrong[0]}')
    if len(shapes) not in (1, len(boxes)):
        raise ValueError(
            f'box_masks expects one shape, or one for each of {len(boxes)} images, '
            f'got {len(shapes)}'
        )
    # Images with fewer boxes are filled up with boxes that have no area.
    padded = pad_sequence([b.to(dtype) for b in boxes], batch_first=True)
    # A copy that does not make the host wait for the device. Columns come before rows in all.
    known = torch.tensor([side[::-1] for side in (*sizes, *shapes)], dtype=dtype)
    cells, pixels = known.to(padded.device, non_blocking=True)[:, None].split(
        [len(sizes), len(shapes)]
    )
    corners = padded.unflatten(2, (2, 2))[:, None]  # (N, 1, boxes, corners, axes)
    low, high = corners.unbind(3)
    first, last = (corners * cells[:, :, None] / pixels[:, None, None]).unbind(3)
    first, last = first.floor(), last.ceil()
    real = high > low.clamp(min=0)
    weight = (last + 1 - first).prod(3).reciprocal()
    return _largest_weight(weight, first, last, real, sizes)


def _largest_weight(
    weight: Tensor, first: Tensor, last: Tensor, real: Tensor, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """The largest weight among the boxes on each cell, 0 where there is none.

    A tensor (N, boxes, H, W) would hold gigabytes for many boxes. Let one of b boxes, of rank k by
    weight, have the coordinate k in each row that it covers, -b in each column that it covers, and
    0 in all others. Row and column are then b + k apart where it covers both and at most b
    elsewhere, so the Chebyshev distance finds the highest rank. These are small whole numbers,
    hence exact.

    Args:
        weight: ``(N, maps, boxes)``, not negative.
        first: The first column and row that a box covers, ``(N, maps, boxes, 2)``.
        last: The last ones.
        real: Whether it covers any, ``(N, 1, boxes, 2)``.
        sizes: Of the maps.

    Returns:
        ``(N, positions)``.
    """
    count = weight.shape[2]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    ordered, order = weight.sort(2)
    like: Any = dict(dtype=weight.dtype, device=weight.device)
    ranks = torch.arange(1, count + 1, **like)
    where = weight.new_full((*weight.shape, 2), -count)  # (N, maps, boxes, axes)
    where[..., 1].scatter_(2, order, ranks.expand_as(order))
    cell = torch.arange(max(height, width), **like)
    covered = (cell == cell.clamp(first[..., None], last[..., None])) & real[..., None]
    column, row = (covered * where[..., None]).transpose(2, 4).unbind(3)
    apart = torch.cdist(row[:, :, :height], column[:, :, :width], p=float('inf'))
    by_distance = torch.nn.functional.pad(ordered, (count + 1, 0))
    found = by_distance.gather(2, apart.flatten(2).long()).view_as(apart)
    maps = [found[:, i, :rows, :columns].flatten(1) for i, (rows, columns) in enumerate(sizes)]
    return torch.cat(maps, 1) if len(maps) > 1 else maps[0]
