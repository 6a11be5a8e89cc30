"""Adapters: small trainable modules that give a student map the shape of a teacher map."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, standardised, without_autocast

__all__ = [
    'Adapter',
    'BatchNorm',
    'OrthogonalConv',
    'map_size',
    'of_one_stride',
    'resize',
    'tokens_to_map',
]

# How many tokens models put in front of those of an image: for the class, for its distillation,
# four registers.
EXTRA_TOKENS = (0, 1, 2, 5)


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


def map_size(tokens: int, image: Sequence[int]) -> tuple[int, int] | None:
    """Find height and width of the map that the tokens of an image are.

    One, two or five tokens in front, as a class token, may belong to no place of the image.

    Args:
        tokens: How many there are.
        image: Height and width of the image, or of any map of it.

    Returns:
        Height and width, or None where no map of the image has as many positions.

    Examples:
        >>> map_size(32 * 64, (512, 1024))
        (32, 64)
        >>> map_size(1 + 32 * 64, (512, 1024))  # with a class token
        (32, 64)
        >>> map_size(101, (512, 1024)) is None
        True
    """
    ratio, rounded = image[0] / image[1], []
    for count in (tokens - extra for extra in EXTRA_TOKENS if extra < tokens):
        heights = range(1, isqrt(int(count * ratio)) + 3)
        sizes = [(height, count // height) for height in heights if count % height == 0]
        exact = [size for size in sizes if size[0] * image[1] == size[1] * image[0]]
        if exact:
            return exact[0]
        rounded += [size for size in sizes if of_one_stride(size, image)]
    return rounded[0] if rounded else None


def of_one_stride(size: Sequence[int], image: Sequence[int]) -> bool:
    """Whether a stride divides an image into a map, where each side may round up or down.

    Args:
        size: Height and width of the map.
        image: Those of the image.

    Examples:
        >>> of_one_stride((38, 50), (600, 800)), of_one_stride((38, 768), (600, 800))
        (True, False)
    """
    least = max(whole / (side + 1) for side, whole in zip(size, image, strict=True))
    most = min(
        whole / (side - 1) if side > 1 else float('inf')
        for side, whole in zip(size, image, strict=True)
    )
    return least < most


def tokens_to_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Put the tokens of images into their places.

    Args:
        x: Tokens, ``(N, L, C)``, row by row; those in front that are more than fit, as class
            tokens, are left out.
        size: Height and width of the map.

    Returns:
        Maps, ``(N, C, *size)``.

    Raises:
        ValueError: If there are fewer tokens than positions.

    Examples:
        >>> tokens = torch.arange(7.0).view(1, 7, 1)
        >>> tokens_to_map(tokens, (2, 3))
        tensor([[[[1., 2., 3.],
                  [4., 5., 6.]]]])
    """
    height, width = size
    if x.dim() != 3 or x.shape[1] < height * width:
        raise ValueError(
            f'expected tokens (N, L, C) with L >= {height} * {width}, got {tuple(x.shape)}'
        )
    maps: Tensor = x[:, x.shape[1] - height * width :].mT.unflatten(2, (height, width))
    return maps


class OrthogonalConv(nn.Module):
    """A 1x1 convolution without bias whose weight is (semi-)orthogonal.

    It keeps angles and lengths where there are at least as many output as input channels. Its
    weight is the orthogonal factor of the parameter, which makes it ordinary for optimizers,
    checkpoints, copies and FSDP: the parameter may be anything of full rank.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.

    Examples:
        >>> weight = OrthogonalConv(2, 3).orthogonal()
        >>> torch.allclose(weight.mT @ weight, torch.eye(2), atol=1e-6)
        True
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.orthogonal_(self.weight)

    def orthogonal(self) -> Tensor:
        """The weight, ``(out_channels, in_channels)``, at least float32."""
        weight = at_least_float32(self.weight)
        wide = weight.shape[0] < weight.shape[1]
        q, r = torch.linalg.qr(weight.mT if wide else weight)
        # The signs make it the weight itself where that is orthogonal.
        orthogonal: Tensor = q * r.detach().diagonal().sign()
        return orthogonal.mT if wide else orthogonal

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            weight = self.orthogonal().to(x.dtype)
        convolved: Tensor = F.conv2d(x, weight[:, :, None, None])
        return convolved


class BatchNorm(nn.Module):
    """Batch norm by the batches of all processes, whether in training or not.

    It keeps no running statistics: what is compared in training alone needs none.

    Args:
        channels: Channels of the maps.

    Examples:
        >>> BatchNorm(2)(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])).tolist()[0][1]
        [[0.0, 0.0]]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = standardised(x, (0, 2, 3), 1e-5, unbiased=False, eps_on='variance')
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class Adapter(nn.Module):
    """A 1x1 convolution where the channels differ, a resize where the strides differ.

    Both are linear and commute, so the convolution runs at the smaller of the two sizes.

    Args:
        in_channels: Channels of the student map.
        out_channels: Channels of the teacher map.
        norm: Whether a batch norm follows the convolution, which then has no bias. Its statistics
            are those of one process, unless it is converted to SyncBN with the student's.
        orthogonal: Whether the weight stays orthogonal: see [`OrthogonalConv`][].
        always: Whether there is a convolution also where the channels agree, as there is with a
            norm or an orthogonal weight.

    Examples:
        >>> student, teacher = torch.zeros(2, 16, 8, 8), torch.zeros(2, 64, 4, 4)
        >>> Adapter(16, 64)(student, teacher.shape[-2:]).shape
        torch.Size([2, 64, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: bool = False,
        orthogonal: bool = False,
        always: bool = False,
    ) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Identity()
        if orthogonal:
            self.conv = OrthogonalConv(in_channels, out_channels)
        elif always or norm or in_channels != out_channels:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Adapt a student map.

        Args:
            x: Student map, ``(N, in_channels, H, W)``.
            size: Height and width of the teacher map.

        Returns:
            Map, ``(N, out_channels, *size)``.
        """
        smaller = size[0] * size[1] < x.shape[-2] * x.shape[-1]
        adapted: Tensor = self.norm(self.conv(resize(x, size) if smaller else x))
        return resize(adapted, size)
