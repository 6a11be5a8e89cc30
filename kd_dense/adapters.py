"""Adapters: small trainable modules that give a student map the shape of a teacher map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ['Adapter', 'resize']


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly, from corner to corner of the image.

    Args:
        x: Maps, ``(N, C, H, W)``.
        size: ``(H', W')``; where it is ``(H, W)`` already, ``x`` itself is returned.

    Returns:
        Maps, ``(N, C, H', W')``.
    """
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode='bilinear', align_corners=False)


class Adapter(nn.Module):
    """A 1x1 convolution where the channels differ, a resize where the strides differ.

    Both are linear and commute, so the convolution runs at the smaller of the two sizes.

    Args:
        in_channels: Channels of the student map.
        out_channels: Channels of the teacher map.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 16, 8, 8), torch.zeros(2, 64, 4, 4)
        >>> Adapter(16, 64)(student, teacher.shape[-2:]).shape
        torch.Size([2, 64, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Adapt a student map.

        Args:
            x: Student map, ``(N, in_channels, H, W)``.
            size: Height and width of the teacher map.

        Returns:
            Map, ``(N, out_channels, *size)``.
        """
        if size[0] * size[1] < x.shape[-2] * x.shape[-1]:
            adapted: Tensor = self.conv(resize(x, size))
            return adapted
        return resize(self.conv(x), size)
