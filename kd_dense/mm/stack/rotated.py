"""Rotated boxes in PyTorch, in the place of mmcv's compiled operators: IoU, NMS, and the order of
vertices, which the differentiable IoU wants.

A rotated box is its centre x, y, its width, its height and its angle in radians, clockwise where y
points down. IoU and NMS take and yield what the CPU operators of mmcv do, with two differences:

- Where sides of two boxes coincide but for rounding, as of one box written in two ways, mmcv's
  loses vertices of what they have in common, and finds an IoU of 0.6, or 0, for 1. Here it is 1.
- NMS heeds labels, which mmcv's does on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kd_dense.mm.stack.nms import not_suppressed

__all__ = ['OPERATORS', 'box_iou_rotated', 'nms_rotated', 'sort_vertices']

# Pairs of boxes whose overlap is found at a time: 100 MB.
MAX_PAIRS = 1 << 18
# A box of less than this overlaps nothing, as in mmcv.
MIN_AREA = 1e-14
# Two rectangles meet in at most this many vertices.
VERTICES = 8


def _check(name: str, boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] < 5:
        raise ValueError(
            f'{name} must have shape (N, 5): x, y, width, height, angle; got {tuple(boxes.shape)}'
        )


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _corners(boxes: Tensor) -> Tensor:
    """The corners of rotated boxes (P, 5), clockwise where y points down, shape (P, 4, 2)."""
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    x, y = (boxes[:, None, 2:4] / 2 * signs).unbind(2)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    return boxes[:, None, :2] + torch.stack([x * cos - y * sin, x * sin + y * cos], 2)


def _between(a: Tensor, b: Tensor, depth_a: Tensor, depth_b: Tensor) -> Tensor:
    """Where the way from a (P, 1, 2), inside, to b, outside, crosses the line: (P, 1, 2)."""
    share = (depth_a / (depth_a - depth_b)).nan_to_num(0.0).clamp(0, 1)
    return a + share[..., None] * (b - a)


def _cut(polygons: Tensor, depth: Tensor) -> Tensor:
    """Cuts off what lies beyond a line of each convex polygon.

    Args:
        polygons: Vertices in order, of which some may be equal, shape (P, m, 2).
        depth: How far before the line each of them lies, negative beyond it, shape (P, m).

    Returns:
        What is left, shape (P, m + 1, 2); nothing has no area, but as many vertices.
    """
    count = polygons.shape[1]
    # The first vertex beyond the line becomes the first of all. If all lie on one side, any may.
    leaves = (depth >= 0) & (depth.roll(-1, 1) < 0)
    first = leaves.to(torch.uint8).argmax(1, keepdim=True) + 1
    index = (first + torch.arange(count, device=depth.device)) % count
    depth = depth.gather(1, index)
    polygons = polygons.gather(1, index[..., None].expand(-1, -1, 2))
    inside = depth >= 0
    out = _between(polygons[:, -1:], polygons[:, :1], depth[:, -1:], depth[:, :1])
    enters = inside.to(torch.uint8).argmax(1, keepdim=True)
    ends = torch.cat([enters, (enters - 1) % count], 1)
    a, b = polygons.gather(1, ends[..., None].expand(-1, -1, 2)).split(1, 1)
    back = _between(a, b, *depth.gather(1, ends).split(1, 1))
    return torch.cat([out, torch.where(inside[..., None], polygons, back)], 1)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """The area that rotated boxes (P, 5) have in common with others, pair by pair: (P,)."""
    polygons, lines = _corners(a), _corners(b)
    middle = polygons.mean(1, keepdim=True)  # small numbers are exact numbers
    polygons, lines = polygons - middle, lines - middle
    for side in range(4):
        start, end = lines[:, side, None], lines[:, (side + 1) % 4, None]
        polygons = _cut(polygons, _cross(end - start, polygons - start))
    return _cross(polygons, polygons.roll(-1, 1)).sum(1) / 2


def _overlap(a: Tensor, b: Tensor, mode_flag: int) -> Tensor:
    """IoU (0) or intersection over the area of a (1), pair by pair: (P,)."""
    area_a, area_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    common = _intersection(a, b).clamp(min=0)
    whole = area_a if mode_flag else area_a + area_b - common
    return torch.where(torch.minimum(area_a, area_b) < MIN_AREA, 0, common / whole)


def _hulls(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest x, y of rotated boxes, both (N, 2)."""
    corners = _corners(boxes)
    return corners.amin(1), corners.amax(1)


def _overlaps(a: Tensor, b: Tensor, mode_flag: int = 0) -> Tensor:
    """The same of all pairs, (A, B): computed for those alone whose hulls meet."""
    result = a.new_zeros(len(a), len(b))
    (low, high), (other_low, other_high) = _hulls(a), _hulls(b)
    step = max(4 * MAX_PAIRS // max(len(b), 1), 1)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        meet = (low[part, None] < other_high).all(2) & (high[part, None] > other_low).all(2)
        for pairs in meet.nonzero().split(MAX_PAIRS):
            i, j = pairs.unbind(1)
            result[start + i, j] = _overlap(a[start + i], b[j], mode_flag)
    return result


@torch.no_grad()
def box_iou_rotated(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Computes how much rotated boxes overlap.

    Args:
        bboxes1: Boxes x, y, width, height, angle, shape (N, 5); what follows, as a score, is not
            read.
        bboxes2: Others, shape (M, 5).
        ious: Output, N * M numbers, those of the first box first; or N, if aligned. Overwritten.
        mode_flag: 0 for IoU, 1 for intersection over the area of the first box.
        aligned: Whether to compare the first with the first, the second with the second, ...

    Raises:
        ValueError: If boxes do not have these shapes.
    """
    _check('bboxes1', bboxes1)
    _check('bboxes2', bboxes2)
    if aligned and len(bboxes1) != len(bboxes2):
        raise ValueError(f'aligned boxes must be as many, got {len(bboxes1)} and {len(bboxes2)}')
    dtype = torch.promote_types(bboxes1.dtype, torch.float32)
    compare = _overlap if aligned else _overlaps
    ious.copy_(
        compare(bboxes1[:, :5].to(dtype), bboxes2[:, :5].to(dtype), mode_flag).view_as(ious)
    )


@torch.no_grad()
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Removes every rotated box that overlaps a kept box of higher score by a threshold or more.

    Of boxes with equal scores the first comes first.

    Args:
        dets: Boxes x, y, width, height, angle, shape (N, 5); and their label, if multi_label.
        scores: Scores, shape (N,).
        order: Not used, as `dets_sorted`: the indices of falling scores, where ties may have any
            order.
        dets_sorted: See `order`.
        labels: Not used: `dets` has them.
        iou_threshold: IoU that two kept boxes must stay below.
        multi_label: Whether boxes of different labels keep out of each other's way.

    Returns:
        Indices of the kept boxes by descending score, shape (K,), int64.

    Raises:
        ValueError: If boxes and scores do not have these shapes.
    """
    _check('dets', dets)
    if scores.shape != dets.shape[:1]:
        raise ValueError(
            f'scores must have shape ({len(dets)},), one for each box, got {tuple(scores.shape)}'
        )
    best = scores.sort(descending=True, stable=True).indices
    columns = dets.to(torch.promote_types(dets.dtype, torch.float32))[best].t()

    def suppresses(a: Tensor, b: Tensor) -> Tensor:
        over = _overlaps(a[:5].t(), b[:5].t()) >= iou_threshold
        return over & (a[5][:, None] == b[5]) if multi_label else over

    return not_suppressed(columns, best, suppresses)


@torch.no_grad()
def sort_vertices(vertices: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """Orders the vertices of what two rectangles have in common, for mmcv's differentiable IoU.

    Args:
        vertices: Corners of both, which may lie in the other, and points where their sides may
            meet, about the mean of those that do, shape (B, N, 8 + 16, 2).
        mask: Which of them do, shape (B, N, 24).
        num_valid: How many, shape (B, N).

    Returns:
        The indices of the vertices around the mean, and of the first again, int32, shape
        (B, N, 9). The rest, or all where there are fewer than three, is the index of a point that
        does not count, whose coordinates mmcv has set to 0.
    """
    angle = torch.atan2(vertices[..., 1], vertices[..., 0]).masked_fill(~mask, torch.inf)
    angle, order = angle.sort(dim=-1)
    # Boxes that are all but equal have more vertices than there is room for, each several times:
    # those go that lie next to another.
    gap = torch.cat([torch.full_like(angle[..., :1], torch.inf), angle.diff(dim=-1)], -1)
    gap = gap.masked_fill(angle == torch.inf, -1.0)
    room = gap.topk(VERTICES, -1).indices.sort(-1).values
    count = num_valid.clamp(max=VERTICES)[..., None]
    ring = order.gather(-1, room)
    ring = torch.cat([ring, ring[..., :1]], -1)
    place = torch.arange(VERTICES + 1, device=ring.device)
    ring = torch.where(place == count, ring[..., :1], ring)
    nothing = VERTICES + mask[..., VERTICES:].to(torch.uint8).argmin(-1, keepdim=True)
    return torch.where((place <= count) & (count >= 3), ring, nothing).to(torch.int32)


OPERATORS: dict[str, Callable[..., object]] = {
    'box_iou_rotated': box_iou_rotated,
    'nms_rotated': nms_rotated,
    'diff_iou_rotated_sort_vertices_forward': sort_vertices,
}
