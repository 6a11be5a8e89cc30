"""NMS and soft-NMS in PyTorch, in the place of mmcv's compiled operators.

Both follow the CPU operators of mmcv: the same arguments, the same order of the results, the same
rounding where it decides which box is kept. One difference: NMS takes equal scores in the order
of the boxes everywhere, while mmcv leaves their order to an unstable sort.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ['nms', 'not_suppressed', 'softnms']

# Boxes that NMS decides at a time: a block holds BLOCK x N overlaps, 10 MB for N = 10,000.
BLOCK = 256


def _precision(boxes: Tensor) -> torch.dtype:
    """What is computed in: at least float32."""
    return torch.promote_types(boxes.dtype, torch.float32)


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


def not_suppressed(
    columns: Tensor, order: Tensor, suppresses: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Removes every box that a kept box before it suppresses.

    Args:
        columns: Boxes as columns, the best first, shape (k, N).
        order: What to return of each, shape (N,).
        suppresses: Of boxes (k, A) and (k, B), which of the A would remove which of the B: a bool
            matrix (A, B).

    Returns:
        The entries of `order` that are kept, shape (K,).
    """
    kept = []
    while order.numel():
        head, tail = columns[:, :BLOCK], columns[:, BLOCK:]
        keep = _greedy(suppresses(head, head).triu_(1))
        kept.append(order[:BLOCK][keep])
        free = ~suppresses(head[:, keep], tail).any(0)
        columns, order = tail[:, free], order[BLOCK:][free]
    return torch.cat(kept) if kept else order


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

    Raises:
        ValueError: If boxes and scores do not have these shapes.
    """
    _check_boxes(boxes, scores)
    order = scores.sort(descending=True, stable=True).indices
    columns = boxes.to(_precision(boxes))[order].t().contiguous()
    return not_suppressed(columns, order, lambda a, b: _iou(a, b, offset) > iou_threshold)


def _weights(iou: Tensor, iou_threshold: float, sigma: float, method: int) -> Tensor:
    """By what soft-NMS multiplies the scores of boxes with this IoU; see `softnms`."""
    if method == 0:
        return (~(iou >= iou_threshold)).to(iou.dtype)
    if method == 1:
        return torch.where(iou >= iou_threshold, 1 - iou, 1.0)
    # Through float64: a float32 exp may be off by one bit, which changes who wins a tie.
    return (-(iou * iou) / sigma).double().exp().to(iou.dtype)


def _best(scores: Tensor) -> int:
    """Finds the largest score.

    Two boxes without area have IoU NaN, and with gaussian the score becomes NaN: such a box is
    passed over until it comes first, as in mmcv.
    """
    if bool(scores[0].isnan()):
        return 0
    return int(scores.masked_fill(scores.isnan(), -torch.inf).argmax())


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

    Raises:
        ValueError: If boxes and scores do not have these shapes, or there is no such method.
    """
    _check_boxes(boxes, scores)
    if method not in (0, 1, 2):
        raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method}')
    dtype = _precision(boxes)
    table = torch.cat([boxes.to(dtype), scores.to(dtype)[:, None]], dim=1).t().contiguous()
    inds = torch.arange(boxes.shape[0], device=boxes.device)
    size = boxes.shape[0]
    i = 0
    while i < size:
        best = i + _best(table[4, i:size])
        # Swap, and fill gaps from the end below: among equal scores the position in the table
        # decides, so it must change exactly as in the compiled operator.
        for rows in (table, inds):
            rows[..., [i, best]] = rows[..., [best, i]]
        iou = _iou(table[:4, i : i + 1], table[:4, i + 1 : size], offset)[0]
        rest = table[4, i + 1 : size]
        rest *= _weights(iou, iou_threshold, sigma, method)
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
