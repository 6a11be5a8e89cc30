"""Where RoIAlign reads a feature map: the bins of each roi and the sample points of each bin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Bins', 'Points', 'chunks', 'make_bins', 'neighbours', 'sample']


class Bins(NamedTuple):
    """Bins of RoIAlign in row order (roi, row, column), each field of shape (bins,).

    Attributes:
        y, x: Top left corner.
        height, width: Size.
        rows, columns: Number of sample points in each direction, int64.
        image: Index of the image, int64.
        end: Number of sample points up to and including this bin, int64.
    """

    y: Tensor
    x: Tensor
    height: Tensor
    width: Tensor
    rows: Tensor
    columns: Tensor
    image: Tensor
    end: Tensor

    def part(self, start: int, stop: int) -> Bins:
        """Returns a range of the bins."""
        return Bins(*(field[start:stop] for field in self))


class Points(NamedTuple):
    """Sample points of RoIAlign and their four neighbours in a feature map of (pixels, C).

    Attributes:
        bin: Index of the bin, shape (P,), int64.
        start: Index of the first point of each bin, shape (bins,), int64.
        y, x: Position, shape (P,).
        pixel: Index of the neighbours, shape (P, 4), int64.
        weight: Bilinear weight of the neighbours, shape (P, 4); 0 outside of the map.
    """

    bin: Tensor
    start: Tensor
    y: Tensor
    x: Tensor
    pixel: Tensor
    weight: Tensor


def _check_rois(size: Tensor, image: Tensor, images: int) -> None:
    if not bool((size >= 0).all()):
        raise ValueError('RoIAlign needs rois with x2 >= x1 and y2 >= y1 (and no NaN)')
    if int(image.min()) < 0 or int(image.max()) >= images:
        raise ValueError(
            f'image index of a roi is outside of the batch of {images}: '
            f'{int(image.min())} to {int(image.max())}'
        )


def make_bins(
    rois: Tensor,
    images: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Bins:
    """Divides N rois into N x height x width bins.

    Args:
        rois: Image index, x1, y1, x2, y2, shape (N, 5).
        images: Number of images in the batch.
        height: Number of bins of a roi from top to bottom.
        width: Number of bins from left to right.
        spatial_scale: Scale from the rois to the feature map.
        sampling_ratio: Points in each direction of a bin; 0 takes one for each pixel begun.
        aligned: Whether to shift by half a pixel. Without, rois are at least 1 x 1 large.

    Returns:
        The bins.

    Raises:
        ValueError: If rois have another shape and, on the CPU, if their corners are in the wrong
            order or an image index is outside of the batch.
    """
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f'rois must have shape (N, 5): image index, x1, y1, x2, y2; got {tuple(rois.shape)}'
        )
    image = rois[:, 0].long()
    corners = rois[:, 1:] * spatial_scale
    if aligned:
        corners = corners - 0.5
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    # Only on the CPU, as in mmcv: on a GPU it would wait for the device.
    if rois.device.type == 'cpu' and rois.shape[0]:
        _check_rois(size, image, images)
    cell = size / torch.tensor([width, height], dtype=rois.dtype, device=rois.device)
    if sampling_ratio > 0:
        grid = torch.full_like(image, sampling_ratio)[:, None].expand(-1, 2)
    else:
        # float32 as in mmcv: a float64 size of 2 + 1e-15 shall not need 3 points.
        grid = cell.float().ceil().nan_to_num(0.0, 0.0, 0.0).clamp(min=0).long()

    ph = torch.arange(height, device=rois.device)[:, None]
    pw = torch.arange(width, device=rois.device)
    shape = (rois.shape[0], height, width)

    def spread(values: Tensor) -> Tensor:
        return values.expand(shape).reshape(-1)

    cell, start, points = cell[:, :, None, None], start[:, :, None, None], grid[:, :, None, None]
    return Bins(
        y=spread(start[:, 1] + ph * cell[:, 1]),
        x=spread(start[:, 0] + pw * cell[:, 0]),
        height=spread(cell[:, 1]),
        width=spread(cell[:, 0]),
        rows=spread(points[:, 1]),
        columns=spread(points[:, 0]),
        image=spread(image[:, None, None]),
        end=spread(points[:, 0] * points[:, 1]).cumsum(0),
    )


def chunks(end: Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """Cuts bins into ranges of at most `limit` sample points, but at least one bin."""
    start, done, count = 0, 0, end.shape[0]
    if count and int(end[-1]) <= limit:
        yield 0, count
        return
    while start < count:
        stop = int(torch.searchsorted(end, done + limit, right=True))
        stop = max(stop, start + 1)
        yield start, stop
        start, done = stop, int(end[stop - 1])


def neighbours(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Finds the four pixels around each point and their bilinear weights.

    A point up to one pixel outside of the map counts as on its border, one further out has
    weight 0.

    Args:
        y: Rows, shape (P,).
        x: Columns, shape (P,).
        height: Height of the map.
        width: Width of the map.

    Returns:
        Indices y * width + x, shape (P, 4), int64, and weights, shape (P, 4).
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = torch.where(inside, y, 0).clamp(0, height - 1)
    x = torch.where(inside, x, 0).clamp(0, width - 1)
    top, left = y.long(), x.long()
    below, right = y - top, x - left
    above, ahead = (1 - below) * inside, 1 - right
    below = below * inside
    weight = torch.stack([above * ahead, above * right, below * ahead, below * right], dim=1)
    row = top * width
    next_row = (top + 1).clamp_(max=height - 1) * width
    next_left = (left + 1).clamp_(max=width - 1)
    pixel = torch.stack(
        [row + left, row + next_left, next_row + left, next_row + next_left], dim=1
    )
    return pixel, weight


def sample(bins: Bins, height: int, width: int) -> Points:
    """Spreads sample points evenly over the bins.

    Point (i, j) of a bin with r x c points lies at
    y + (i + 0.5) * bin height / r, x + (j + 0.5) * bin width / c.
    """
    count = bins.rows * bins.columns
    start = count.cumsum(0) - count
    ids = torch.arange(count.shape[0], device=count.device).repeat_interleave(count)
    step = torch.arange(ids.shape[0], device=count.device) - start[ids]
    columns = bins.columns[ids]
    i = step.div(columns, rounding_mode='floor')
    j = step - i * columns
    y = bins.y[ids] + (i + 0.5) * bins.height[ids] / bins.rows[ids]
    x = bins.x[ids] + (j + 0.5) * bins.width[ids] / columns
    pixel, weight = neighbours(y, x, height, width)
    pixel += (bins.image[ids] * (height * width))[:, None]
    return Points(ids, start, y, x, pixel, weight)
