"""Ground truth at the size of a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ['labels_at']


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
    rows, columns = (
        torch.arange(count, device=segmentation.device) * length // count
        for count, length in zip(size, segmentation.shape[1:], strict=True)
    )
    labels = segmentation[:, rows[:, None], columns].long()
    valid = (labels >= 0) & (labels < num_classes) & (labels != ignore_index)
    return labels.masked_fill(~valid, 0), valid
