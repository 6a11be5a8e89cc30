"""PyTorch versions of the mmcv operators that detectors need most.

mmcv from PyPI comes without its compiled operators, and then ``import mmdet.models`` fails
because ``mmcv._ext`` is missing. `install` puts a replacement for ``mmcv._ext`` into
``sys.modules``. It runs NMS, soft-NMS, RoIAlign and both deformable convolutions in plain PyTorch,
on any device; every other operator can be looked up, but raises `NotImplementedError` when it is
called. Where the compiled operators exist, `install` leaves them alone.

The functions follow the CPU operators of mmcv: the same arguments, the same order of the results,
the same rounding where it decides which box is kept. One difference: NMS takes equal scores in
the order of the boxes everywhere, while mmcv leaves their order to an unstable sort.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.mm import deform_conv

__all__ = ['install', 'nms', 'roi_align_backward', 'roi_align_forward', 'softnms']

NAME = 'mmcv._ext'
REPLACED = 'NMS, soft-NMS, RoIAlign and deformable convolutions'
# Boxes that NMS decides at a time: a block holds BLOCK x N overlaps, 10 MB for N = 10,000.
BLOCK = 256
# Sample points of RoIAlign at a time (each has 4 neighbours), and values in max pooling.
MAX_POINTS = 1 << 19
MAX_VALUES = 1 << 22
# Argmax of a bin without sample points: outside of every map, so that it gets no gradient. (mmcv
# marks it with -1, and so loses the gradient of a point that lies at -1.)
OUTSIDE = -2.0


def _value_dtype(tensor: Tensor) -> torch.dtype:
    """Returns float64 for float64 tensors and float32 for all others."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_boxes(boxes: Tensor, scores: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f'boxes must have shape (N, 4), got {tuple(boxes.shape)}')
    if scores.shape != boxes.shape[:1]:
        raise ValueError(
            f'scores must have shape ({boxes.shape[0]},), one for each box, '
            f'got {tuple(scores.shape)}'
        )


def _iou(a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Computes the IoU of all pairs of boxes.

    Args:
        a: Boxes as columns, shape (4, A): rows x1, y1, x2, y2.
        b: Boxes as columns, shape (4, B).
        offset: Side length of a box is x2 - x1 + offset.

    Returns:
        IoU, shape (A, B). It is NaN for two boxes without area.
    """
    a = a[:, :, None]
    b = b[:, None, :]
    # The order of the operations is that of the compiled operator: a box at the threshold must
    # round to the same side.
    width = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).add_(offset).clamp_(min=0)
    height = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).add_(offset).clamp_(min=0)
    inter = width.mul_(height)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return inter / (area_a + area_b).sub_(inter)


def _greedy(suppress: Tensor) -> Tensor:
    """Solves greedy suppression within one block.

    The greedy choice is the only solution of keep[j] = not any_{i<j}(keep[i] and suppress[i, j]).
    Iterating this equation settles at least one more box per round, so it ends at that solution;
    it needs as many rounds as the longest chain of boxes that suppress each other.

    Args:
        suppress: Upper triangular bool matrix, shape (n, n): box i would remove box j.

    Returns:
        Bool mask of the kept boxes, shape (n,).
    """
    keep = torch.ones(suppress.shape[0], dtype=torch.bool, device=suppress.device)
    while True:
        new = ~(suppress & keep[:, None]).any(0)
        if torch.equal(new, keep):
            return keep
        keep = new


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Removes every box that overlaps a kept box of higher score by more than a threshold.

    A box is removed if IoU > iou_threshold. Of boxes with equal scores the first comes first.

    Args:
        boxes: Boxes x1, y1, x2, y2, shape (N, 4).
        scores: Scores, shape (N,).
        iou_threshold: Largest IoU that two kept boxes may have.
        offset: Side length of a box is x2 - x1 + offset, 0 or 1.

    Returns:
        Indices of the kept boxes by descending score, shape (K,), int64.
    """
    _check_boxes(boxes, scores)
    order = scores.sort(descending=True, stable=True).indices
    columns = boxes.to(_value_dtype(boxes))[order].t().contiguous()
    kept = []
    while order.numel():
        head, tail = columns[:, :BLOCK], columns[:, BLOCK:]
        keep = _greedy((_iou(head, head, offset) > iou_threshold).triu_(1))
        kept.append(order[:BLOCK][keep])
        free = ~(_iou(head[:, keep], tail, offset) > iou_threshold).any(0)
        columns, order = tail[:, free], order[BLOCK:][free]
    return torch.cat(kept) if kept else order


@torch.no_grad()
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lowers the scores of boxes that overlap a better box (soft-NMS).

    The best remaining box is chosen again and again; the scores of the other boxes are multiplied
    by a weight, and boxes with a score below min_score are dropped:

    - method 0 (naive): 0 where IoU >= iou_threshold, else 1
    - method 1 (linear): 1 - IoU where IoU >= iou_threshold, else 1
    - method 2 (gaussian): exp(-IoU^2 / sigma)

    Args:
        boxes: Boxes x1, y1, x2, y2, shape (N, 4).
        scores: Scores, shape (N,).
        dets: Output, shape (N, 5): the first K rows get x1, y1, x2, y2 and the new score in the
            order of choice. The other rows are left as they are.
        iou_threshold: Threshold of naive and linear.
        sigma: Width of gaussian.
        min_score: Boxes below this score are dropped.
        method: 0, 1 or 2.
        offset: Side length of a box is x2 - x1 + offset, 0 or 1.

    Returns:
        Indices of the chosen boxes in the order of choice, shape (K,), int64.
    """
    _check_boxes(boxes, scores)
    if method not in (0, 1, 2):
        raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method}')
    dtype = _value_dtype(boxes)
    table = torch.cat([boxes.to(dtype), scores.to(dtype)[:, None]], dim=1).t().contiguous()
    inds = torch.arange(boxes.shape[0], device=boxes.device)
    size = boxes.shape[0]
    i = 0
    while i < size:
        best = i
        left = table[4, i:size]
        # Two boxes without area have IoU NaN, and with gaussian the score becomes NaN: such a
        # box is passed over until the swaps bring it to position i, as in mmcv.
        if not bool(left[0].isnan()):
            best += int(left.masked_fill(left.isnan(), -torch.inf).argmax())
        # Swap, and fill gaps from the end below: among equal scores the position in the table
        # decides, so it must change exactly as in the compiled operator.
        for rows in (table, inds):
            rows[..., [i, best]] = rows[..., [best, i]]
        iou = _iou(table[:4, i : i + 1], table[:4, i + 1 : size], offset)[0]
        if method == 0:
            weight = (~(iou >= iou_threshold)).to(dtype)
        elif method == 1:
            weight = torch.where(iou >= iou_threshold, 1 - iou, 1.0)
        else:
            # Through float64: a float32 exp may be off by one bit, which changes who wins a tie.
            weight = (-(iou * iou) / sigma).double().exp().to(dtype)
        rest = table[4, i + 1 : size]
        rest *= weight
        alive = ~(rest < min_score)
        i += 1
        if alive.all():
            continue
        count = int(alive.sum())
        gaps = i + (~alive[:count]).nonzero()[:, 0]
        fill = i + count + alive[count:].nonzero()[:, 0].flip(0)
        for rows in (table, inds):
            rows[..., gaps] = rows[..., fill]
        size = i + count
    dets[:size] = table[:, :size].t().to(dets.dtype)
    return inds[:size]


class _Bins(NamedTuple):
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

    def part(self, start: int, stop: int) -> _Bins:
        """Returns a range of the bins."""
        return _Bins(*(field[start:stop] for field in self))


class _Points(NamedTuple):
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


def _make_bins(
    rois: Tensor,
    images: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> _Bins:
    """Divides rois (N, 5) into N x height x width bins."""
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
        if not bool((size >= 0).all()):
            raise ValueError('RoIAlign needs rois with x2 >= x1 and y2 >= y1 (and no NaN)')
        if int(image.min()) < 0 or int(image.max()) >= images:
            raise ValueError(
                f'image index of a roi is outside of the batch of {images}: '
                f'{int(image.min())} to {int(image.max())}'
            )
    cells = torch.tensor([width, height], dtype=rois.dtype, device=rois.device)
    cell = size / cells
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
    return _Bins(
        y=spread(start[:, 1] + ph * cell[:, 1]),
        x=spread(start[:, 0] + pw * cell[:, 0]),
        height=spread(cell[:, 1]),
        width=spread(cell[:, 0]),
        rows=spread(points[:, 1]),
        columns=spread(points[:, 0]),
        image=spread(image[:, None, None]),
        end=spread(points[:, 0] * points[:, 1]).cumsum(0),
    )


def _chunks(end: Tensor, limit: int) -> Iterator[tuple[int, int]]:
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


def _neighbours(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
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


def _sample(bins: _Bins, height: int, width: int) -> _Points:
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
    pixel, weight = _neighbours(y, x, height, width)
    pixel += (bins.image[ids] * (height * width))[:, None]
    return _Points(ids, start, y, x, pixel, weight)


def _bag(table: Tensor, index: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Sums weighted rows of a table; bag k holds the entries start[k] to start[k + 1].

    `embedding_bag` does not build the chosen rows (len(index), C), which keeps the memory small.
    """
    if not index.numel():
        return table.new_zeros(start.shape[0], table.shape[1])
    return F.embedding_bag(
        index, table, start, mode='sum', per_sample_weights=weight.to(table.dtype)
    )


def _rows(maps: Tensor) -> Tensor:
    """Turns (N, C, H, W) into (N * H * W, C), in float32 or float64."""
    rows = maps.to(_value_dtype(maps)).permute(0, 2, 3, 1)
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
) -> _Bins:
    """Checks the arguments and makes the bins in the precision that the maps need."""
    if pool_mode not in (0, 1):
        raise ValueError(f'pool_mode must be 0 (max) or 1 (avg), got {pool_mode}')
    dtype = torch.promote_types(_value_dtype(maps), _value_dtype(rois))
    return _make_bins(
        rois.to(dtype), maps.shape[0], height, width, spatial_scale, sampling_ratio, aligned
    )


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
    table = _rows(input)
    channels, height, width = input.shape[1:]
    result = table.new_zeros(bins.y.shape[0], channels)
    if pool_mode == 1:
        for start, stop in _chunks(bins.end, MAX_POINTS):
            part = bins.part(start, stop)
            points = _sample(part, height, width)
            total = _bag(table, points.pixel.view(-1), points.start * 4, points.weight.view(-1))
            count = (part.rows * part.columns).clamp(min=1)
            result[start:stop] = total / count[:, None]
        _copy_rows(result, output)
        return

    best_y = torch.full_like(result, OUTSIDE)
    best_x = torch.full_like(result, OUTSIDE)
    for start, stop in _chunks(bins.end, max(MAX_VALUES // max(channels, 1), 1)):
        points = _sample(bins.part(start, stop), height, width)
        size = points.bin.shape[0]
        if not size:
            continue
        ids = torch.arange(size, device=rois.device)
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
    _copy_rows(result, output)
    _copy_rows(best_y, argmax_y)
    _copy_rows(best_x, argmax_x)


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
    images, channels, height, width = grad_input.shape
    if pool_mode == 0:
        _max_backward(grad_output, rois[:, 0].long(), argmax_y, argmax_x, grad_input)
        return
    table = _rows(grad_output).to(_value_dtype(grad_input))
    result = table.new_zeros(images * height * width, channels)
    for start, stop in _chunks(bins.end, MAX_POINTS):
        part = bins.part(start, stop)
        points = _sample(part, height, width)
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


def _max_backward(
    grad_output: Tensor, image: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor
) -> None:
    """Gives the gradient of max pooling back to the points that were the largest."""
    _, channels, height, width = grad_input.shape
    dtype = _value_dtype(grad_input)
    result = torch.zeros(grad_input.numel(), dtype=dtype, device=grad_input.device)
    bins = grad_output.shape[2] * grad_output.shape[3]
    step = max(MAX_POINTS // max(channels * bins, 1), 1)
    for start in range(0, grad_output.shape[0], step):
        part = slice(start, start + step)
        y, x = argmax_y[part].reshape(-1).to(dtype), argmax_x[part].reshape(-1).to(dtype)
        pixel, weight = _neighbours(y, x, height, width)
        plane = image[part, None] * channels + torch.arange(channels, device=image.device)
        plane = plane[:, :, None].expand(-1, -1, bins).reshape(-1, 1)
        grad = grad_output[part].reshape(-1, 1).to(dtype)
        pixel += plane * (height * width)
        result.index_add_(0, pixel.view(-1), (weight * grad).view(-1))
    grad_input += result.view_as(grad_input).to(grad_input.dtype)


def _no_version() -> str:
    """Stands for the compiler versions of mmcv, which `collect_env` prints."""
    return 'n/a'


_OPERATORS: dict[str, Callable[..., object]] = {
    'nms': nms,
    'softnms': softnms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    **deform_conv.OPERATORS,
}


class _Replacement(types.ModuleType):
    """Module in the place of ``mmcv._ext``."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # mmcv asks for every operator when it is imported, so all public names must exist.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise NotImplementedError(
                f'The operator {name!r} is not available: mmcv was installed without its '
                f'compiled operators, and kd_dense replaces only {REPLACED}. '
                'Install mmcv with compiled operators to use it, for example with '
                '`mim install mmcv`, or build mmcv from source with MMCV_WITH_OPS=1.'
            )

        missing.__name__ = missing.__qualname__ = name
        setattr(self, name, missing)
        return missing


def _make_module() -> types.ModuleType:
    """Builds the replacement module."""
    module = _Replacement(NAME, 'PyTorch replacement for the compiled operators of mmcv.')
    # `importlib.util.find_spec` raises for a module without a spec.
    module.__spec__ = ModuleSpec(NAME, None, origin=__name__)
    for name, function in _OPERATORS.items():
        setattr(module, name, function)
    for name in ('get_compiler_version', 'get_compiling_cuda_version'):
        setattr(module, name, _no_version)
    return module


def install() -> bool:
    """Replaces ``mmcv._ext`` where mmcv has no compiled operators.

    Call it before the first import of ``mmcv.ops``, ``mmdet.models`` or ``mmseg.models``; mmcv
    itself may be imported already. Further calls change nothing. It warns once, when the
    replacement is put in place.

    Returns:
        Whether the replacement is in place. False where the compiled operators exist, and where
        mmcv is not installed.
    """
    present = sys.modules.get(NAME)
    if present is not None:
        return isinstance(present, _Replacement)
    spec = importlib.util.find_spec('mmcv')
    if spec is None:
        return False
    # Not `find_spec(NAME)`: it would import mmcv.
    if PathFinder.find_spec(NAME, spec.submodule_search_locations) is not None:
        return False
    module = _make_module()
    sys.modules[NAME] = module
    if 'mmcv' in sys.modules:
        setattr(sys.modules['mmcv'], '_ext', module)  # noqa: B010
    warnings.warn(
        f'mmcv has no compiled operators; kd_dense runs {REPLACED} in PyTorch instead (slower on '
        'a GPU); install mmcv with compiled operators for all others',
        stacklevel=2,
    )
    return True
