"""RoIAlign in PyTorch, forward and backward, in the place of mmcv's compiled operators.

Both follow the CPU operators of mmcv: the same arguments, the same points, the same results but
for rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.mm.stack.roi_points import Bins, chunks, make_bins, neighbours, sample

__all__ = ['roi_align_backward', 'roi_align_forward']

# Sample points at a time (each has 4 neighbours), and values in max pooling.
MAX_POINTS = 1 << 19
MAX_VALUES = 1 << 22
# Argmax of a bin without sample points: outside of every map, so that it gets no gradient. (mmcv
# marks it with -1, and so loses the gradient of a point that lies at -1.)
OUTSIDE = -2.0


def _bag(table: Tensor, index: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Sums weighted rows of a table; bag k holds the entries start[k] to start[k + 1].

    `embedding_bag` does not build the chosen rows (len(index), C), which keeps the memory small.
    """
    if not index.numel():
        return table.new_zeros(start.shape[0], table.shape[1])
    return F.embedding_bag(
        index, table, start, mode='sum', per_sample_weights=weight.to(table.dtype)
    )


def _precision(*tensors: Tensor) -> torch.dtype:
    """What is computed in: at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _rows(maps: Tensor) -> Tensor:
    """Turns (N, C, H, W) into (N * H * W, C), in float32 or float64."""
    rows = maps.to(_precision(maps)).permute(0, 2, 3, 1)
    return rows.reshape(-1, maps.shape[1]).contiguous()


def _copy_rows(rows: Tensor, maps: Tensor) -> None:
    """Writes (N * H * W, C) to maps of (N, C, H, W)."""
    count, channels, height, width = maps.shape
    maps.copy_(rows.view(count, height, width, channels).permute(0, 3, 1, 2))


def _bins_for(
    maps: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Bins:
    """Checks the arguments and makes the bins in the precision that the maps need."""
    if pool_mode not in (0, 1):
        raise ValueError(f'pool_mode must be 0 (max) or 1 (avg), got {pool_mode}')
    rois = rois.to(_precision(maps, rois))
    return make_bins(rois, maps.shape[0], height, width, spatial_scale, sampling_ratio, aligned)


def _average(bins: Bins, maps: Tensor) -> Tensor:
    """Averages the points of each bin; (bins, C)."""
    table = _rows(maps)
    result = table.new_zeros(bins.y.shape[0], table.shape[1])
    for start, stop in chunks(bins.end, MAX_POINTS):
        part = bins.part(start, stop)
        points = sample(part, *maps.shape[2:])
        total = _bag(table, points.pixel.view(-1), points.start * 4, points.weight.view(-1))
        count = (part.rows * part.columns).clamp(min=1)
        result[start:stop] = total / count[:, None]
    return result


def _largest(bins: Bins, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the largest point of each bin: its value, row and column, each (bins, C)."""
    table = _rows(maps)
    channels = table.shape[1]
    result = table.new_zeros(bins.y.shape[0], channels)
    best_y = torch.full_like(result, OUTSIDE)
    best_x = torch.full_like(result, OUTSIDE)
    for start, stop in chunks(bins.end, max(MAX_VALUES // max(channels, 1), 1)):
        points = sample(bins.part(start, stop), *maps.shape[2:])
        size = points.bin.shape[0]
        if not size:
            continue
        ids = torch.arange(size, device=maps.device)
        values = _bag(table, points.pixel.view(-1), ids * 4, points.weight.view(-1))
        index = points.bin[:, None].expand_as(values)
        shape = (stop - start, channels)
        largest = values.new_zeros(shape)
        largest.scatter_reduce_(0, index, values, 'amax', include_self=False)
        # The first of equal values gets the gradient.
        first = torch.where(values == largest[points.bin], ids[:, None], size)
        best = ids.new_full(shape, size).scatter_reduce_(0, index, first, 'amin')
        found = best < size
        best.clamp_(max=size - 1)
        result[start:stop] = largest
        best_y[start:stop] = torch.where(found, points.y[best], OUTSIDE).to(best_y.dtype)
        best_x[start:stop] = torch.where(found, points.x[best], OUTSIDE).to(best_x.dtype)
    return result, best_y, best_x


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pools every roi to a small map of fixed size (RoIAlign), into `output`.

    The roi, multiplied by spatial_scale and shifted by -0.5 if aligned, is divided into
    PH x PW bins. In each bin the map is read with bilinear interpolation at r x c evenly spaced
    points. With average pooling the output is their sum / max(r * c, 1), with max pooling their
    maximum. Points more than one pixel outside of the map count as 0. A bin without points (only
    of an empty roi with sampling_ratio 0) gives 0.

    Args:
        input: Feature maps, shape (B, C, H, W).
        rois: Image index, x1, y1, x2, y2, shape (N, 5).
        output: Output, shape (N, C, PH, PW), overwritten.
        argmax_y: Rows of the largest points for max pooling, shape of the output, overwritten;
            not used for average pooling.
        argmax_x: Their columns.
        aligned_height: PH.
        aligned_width: PW.
        spatial_scale: Scale from the rois to the feature map.
        sampling_ratio: Points r = c in each direction of a bin; 0 takes
            r = ceil(roi height / PH), c = ceil(roi width / PW) for each roi.
        pool_mode: 0 for max, 1 for average.
        aligned: Whether to shift by half a pixel. Without, rois are at least 1 x 1 large.

    Raises:
        ValueError: If there is no such pool_mode, if rois have another shape and, on the CPU, if
            their corners are in the wrong order or an image index is outside of the batch.
    """
    bins = _bins_for(
        input,
        rois,
        aligned_height,
        aligned_width,
        spatial_scale,
        sampling_ratio,
        pool_mode,
        aligned,
    )
    if pool_mode == 1:
        _copy_rows(_average(bins, input), output)
        return
    for rows, maps in zip(_largest(bins, input), (output, argmax_y, argmax_x), strict=True):
        _copy_rows(rows, maps)


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient of RoIAlign with respect to the feature maps to `grad_input`.

    It is the transpose of `roi_align_forward`: every output value gives its gradient back to the
    four pixels around each of its points, by their weights. In max pooling only the largest point
    gets it. The rois get no gradient.

    Args:
        grad_output: Gradient of the output, shape (N, C, PH, PW).
        rois: Image index, x1, y1, x2, y2, shape (N, 5).
        argmax_y: From `roi_align_forward` with max pooling, shape (N, C, PH, PW).
        argmax_x: Likewise.
        grad_input: Gradient of the feature maps, shape (B, C, H, W), added to.
        aligned_height: PH.
        aligned_width: PW.
        spatial_scale: Scale from the rois to the feature map.
        sampling_ratio: As in the forward pass.
        pool_mode: 0 for max, 1 for average.
        aligned: As in the forward pass.

    Raises:
        ValueError: As in the forward pass.
    """
    bins = _bins_for(
        grad_input,
        rois,
        aligned_height,
        aligned_width,
        spatial_scale,
        sampling_ratio,
        pool_mode,
        aligned,
    )
    if pool_mode == 1:
        _average_backward(grad_output, bins, grad_input)
    else:
        _largest_backward(grad_output, rois[:, 0].long(), argmax_y, argmax_x, grad_input)


def _average_backward(grad_output: Tensor, bins: Bins, grad_input: Tensor) -> None:
    """Gives the gradient of average pooling back to all points."""
    images, channels, height, width = grad_input.shape
    table = _rows(grad_output).to(_precision(grad_input))
    result = table.new_zeros(images * height * width, channels)
    for start, stop in chunks(bins.end, MAX_POINTS):
        part = bins.part(start, stop)
        points = sample(part, height, width)
        if not points.bin.numel():
            continue
        count = (part.rows * part.columns).clamp(min=1)
        # Entries (bin, pixel, weight) sorted by pixel: now the bins are the rows to sum.
        pixel, order = points.pixel.view(-1).sort(stable=True)
        pixel, entries = torch.unique_consecutive(pixel, return_counts=True)
        bin_of = points.bin[order.div(4, rounding_mode='floor')]
        weight = points.weight.view(-1)[order] / count[bin_of]
        rows = _bag(table[start:stop], bin_of, entries.cumsum(0) - entries, weight)
        result[pixel] += rows
    maps = result.view(images, height, width, channels).permute(0, 3, 1, 2)
    grad_input += maps.to(grad_input.dtype)


def _largest_backward(
    grad_output: Tensor, image: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor
) -> None:
    """Gives the gradient of max pooling back to the points that were the largest."""
    _, channels, height, width = grad_input.shape
    dtype = _precision(grad_input)
    result = torch.zeros(grad_input.numel(), dtype=dtype, device=grad_input.device)
    bins = grad_output.shape[2] * grad_output.shape[3]
    step = max(MAX_POINTS // max(channels * bins, 1), 1)
    for start in range(0, grad_output.shape[0], step):
        part = slice(start, start + step)
        y, x = argmax_y[part].reshape(-1).to(dtype), argmax_x[part].reshape(-1).to(dtype)
        pixel, weight = neighbours(y, x, height, width)
        plane = image[part, None] * channels + torch.arange(channels, device=image.device)
        plane = plane[:, :, None].expand(-1, -1, bins).reshape(-1, 1)
        grad = grad_output[part].reshape(-1, 1).to(dtype)
        pixel += plane * (height * width)
        result.index_add_(0, pixel.view(-1), (weight * grad).view(-1))
    grad_input += result.view_as(grad_input).to(grad_input.dtype)
