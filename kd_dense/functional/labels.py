"""Ground truth at the size of a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional.checks import check_choice

__all__ = ['Where', 'check_where', 'labels_at', 'share_of_labels']

Where = Literal['all', 'edge', 'body']


def labels_at(
    segmentation: Tensor, size: Sequence[int], num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Take the classes of the pixels of a map from a segmentation of any resolution.

    Row ``i`` of a map of height h is row ``floor(i * H' / h)`` of the segmentation, and so are
    the columns.

    Args:
        segmentation: Class of every pixel, ``(N, H', W')``, integers.
        size: ``(h, w)`` of the map.
        num_classes: Number of classes; others are not valid.
        ignore_index: A class that is not valid either.

    Returns:
        The labels ``(N, h, w)``, int64, with 0 where they are not valid; and whether they are.

    Raises:
        ValueError: If the segmentation has no such shape, or is not of integers.

    Examples:
        >>> segmentation = torch.tensor([[[0, 1, 2, 3], [4, 5, 6, 255]]])
        >>> labels, valid = labels_at(segmentation, (2, 2), num_classes=6)
        >>> labels
        tensor([[[0, 2],
                 [4, 0]]])
        >>> valid
        tensor([[[ True,  True],
                 [ True, False]]])
    """
    _check_labels(segmentation)
    rows, columns = (
        torch.arange(count, device=segmentation.device) * length // count
        for count, length in zip(size, segmentation.shape[1:], strict=True)
    )
    labels = segmentation[:, rows[:, None], columns].long()
    valid = (labels >= 0) & (labels < num_classes) & (labels != ignore_index)
    return labels.masked_fill(~valid, 0), valid


def _check_labels(segmentation: Tensor) -> None:
    if segmentation.dim() != 3:
        raise ValueError(
            'expected a segmentation of shape (N, H, W), a class for every pixel, got shape '
            f'{tuple(segmentation.shape)}'
        )
    if segmentation.is_floating_point() or segmentation.is_complex():
        raise ValueError(
            f'expected a segmentation of integers, got {segmentation.dtype}: it holds the '
            'classes of pixels, not their logits'
        )


def check_where(owner: str, where: str, edge: int) -> None:
    """Raise ``ValueError`` unless both are what [`share_of_labels`][] takes."""
    check_choice(owner, 'where', where, Where)
    if type(edge) is not int or edge < 3 or edge % 2 == 0:
        raise ValueError(f'{owner} expects edge as an odd number of pixels >= 3, got {edge!r}')


@torch.no_grad()
def share_of_labels(
    segmentation: Tensor,
    size: Sequence[int],
    where: Where,
    edge: int = 7,
    ignore_index: int = 255,
) -> Tensor:
    """What share of the pixels of each position of a map lies at the edge of a class, or not.

    A pixel is at an edge if the window around it holds another class. Pixels without a class are
    in neither share, and nothing is an edge to them.

    Args:
        segmentation: Class of every pixel, ``(N, H', W')``, integers.
        size: ``(h, w)`` of the map.
        where: ``'edge'``; ``'body'``, the other pixels; or ``'all'``, both.
        edge: Side of the window, in pixels of the segmentation, odd.
        ignore_index: A class that is none; neither are negative ones.

    Returns:
        ``(N, h, w)``, 0 to 1, float32.

    Raises:
        ValueError: If the segmentation has no such shape, or is not of integers.

    Examples:
        >>> labels = torch.tensor([[[0, 0, 0, 0, 1, 1, 255, 255]]])
        >>> share_of_labels(labels, (1, 4), 'edge', edge=3)
        tensor([[[0.0000, 0.5000, 0.5000, 0.0000]]])
        >>> share_of_labels(labels, (1, 4), 'body', edge=3)
        tensor([[[1.0000, 0.5000, 0.5000, 0.0000]]])
    """
    _check_labels(segmentation)
    known = (segmentation >= 0) & (segmentation != ignore_index)
    counted = known
    if where != 'all':
        labels = segmentation.short()  # two bytes tell classes apart
        lowest, highest = (
            _of_windows(pick, labels.where(known, least), edge, least)
            for pick, least in ((torch.minimum, 2**15 - 1), (torch.maximum, -(2**15)))
        )
        at_edge = highest != lowest
        counted = known & (at_edge if where == 'edge' else ~at_edge)
    height, width = size
    return F.adaptive_avg_pool2d(counted.float(), (height, width))


def _of_windows(pick: Callable[..., Tensor], x: Tensor, side: int, least: int) -> Tensor:
    """The extreme of each window: of twice as many rows in each step, then of columns."""
    x = F.pad(x, [side // 2] * 4, value=least)
    for dim in (1, 2):
        span = 1
        while span < side:
            step = min(span, side - span)
            length = x.shape[dim] - step
            x = pick(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            span += step
    return x
