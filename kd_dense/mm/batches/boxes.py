"""Boxes of every kind, as the upright ones that losses compare with."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['is_rotated', 'plain', 'rotated', 'upright']


def plain(boxes: Any) -> Tensor:
    """Boxes as a tensor: they may be of one of mmdet's types of boxes."""
    found: Tensor = getattr(boxes, 'tensor', boxes)
    return found


def upright(boxes: Any) -> Tensor:
    """The smallest upright box around each: x1, y1, x2, y2.

    Args:
        boxes: Upright ones ``(..., 4)``, which stay as they are, as points ``(..., 2)`` do;
            rotated ones ``(..., 5)``: x, y, width, height and angle in radians; or quadrilaterals
            ``(..., 8)``: their corners.

    Raises:
        ValueError: If they are of none of these widths.

    Examples:
        >>> upright(torch.tensor([[4.0, 6.0, 8.0, 2.0, torch.pi / 2]])).round()
        tensor([[ 3.,  2.,  5., 10.]])
        >>> upright(torch.tensor([[4.0, 0.0, 8.0, 3.0, 4.0, 6.0, 0.0, 3.0]]))
        tensor([[0., 0., 8., 6.]])
    """
    found = plain(boxes)
    width = found.shape[-1]
    if width in (2, 4):
        return found
    if width == 5:
        centre, sides, angle = found[..., :2], found[..., 2:4], found[..., 4:]
        cos, sin = angle.cos().abs(), angle.sin().abs()
        reach = (sides * cos + sides.flip(-1) * sin) / 2
        return torch.cat([centre - reach, centre + reach], -1)
    if width == 8:
        corners = found.unflatten(-1, (4, 2))
        return torch.cat([corners.amin(-2), corners.amax(-2)], -1)
    raise ValueError(
        f'expected boxes (n, 4), rotated boxes (n, 5) or quadrilaterals (n, 8), got '
        f'{tuple(found.shape)}'
    )


def is_rotated(model: nn.Module) -> bool:
    """Whether a model is trained with rotated boxes: mmrotate's are given boxes of its types."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    typed = getattr(preprocessor, 'boxtype2tensor', True) is False
    return typed and 'mmrotate' in sys.modules


def rotated(boxes: Tensor) -> Any:
    """Upright boxes ``(n, 4)`` as mmrotate's type of rotated boxes."""
    from mmdet.structures.bbox import HorizontalBoxes

    return HorizontalBoxes(boxes).convert_to('rbox')
