"""Which region of an image a class has, and what describes it, for IntRA-KD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from kd_dense.functional import for_cache, in_blocks

__all__ = ['Pixels', 'Regions', 'ThirdDenominator', 'region_masks', 'region_moments']

Regions = Literal['dilate', 'smooth']
Pixels = Literal['inside', 'literal']
ThirdDenominator = Literal['std', 'var']

# Shares of the squares that a variance is left over from. Below the first it is what rounding
# leaves of constant values (1e-14), with a margin: 0. Below the second the third moment is lost to
# rounding: it is cubed cancellation, (2**-52)**(2/3), with a margin.
CONSTANT, FLAT = 1e-12, 1e-10
# The means of smooth regions are rounded: by less than sqrt(CONSTANT) times this share of a value.
ROUNDED = 1e-6
# Classes in a word of 64 bits, away from the sign.
BITS = 62


def region_masks(
    segmentation: Tensor,
    size: tuple[int, int] | torch.Size,
    num_classes: int,
    regions: Regions = 'dilate',
    kernel: int = 11,
    ignore_index: int = 255,
) -> Tensor:
    """Say how much each position of a feature map belongs to the region of each class.

    The map of the pixels of a class is averaged over squares of ``kernel`` pixels and then
    resized to ``size``:

    | ``regions`` | outside the image | resized | mask |
    |-|-|-|-|
    | ``dilate`` | nothing | to the nearest pixel | 1 where the mean is positive, else 0 |
    | ``smooth`` | the image mirrored at the edge pixels | bilinearly | the mean itself |

    The nearest pixel is ``floor(i * H' / H)``; bilinearly, the corners of the images lie on each
    other.

    Args:
        segmentation: Class of every pixel, ``(N, H', W')``, integers.
        size: ``(H, W)`` of the feature map.
        num_classes: Classes are ``0 .. num_classes - 1``; other labels belong to no region.
        regions: See the table.
        kernel: Side of the square, odd, in pixels of the segmentation.
        ignore_index: Label of pixels that belong to no region, even if it is a class.

    Returns:
        Masks, ``(N, num_classes, H * W)``, float64, between 0 and 1.

    Raises:
        ValueError: If ``kernel`` reaches further over the edge than mirroring can fill.

    Examples:
        >>> import torch
        >>> segmentation = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> region_masks(segmentation, (1, 6), num_classes=2, kernel=3).int()
        tensor([[[1, 1, 1, 1, 0, 0],
                 [0, 0, 1, 1, 1, 1]]], dtype=torch.int32)
    """
    whole = segmentation.shape[1:]
    smooth = regions == 'smooth'
    if smooth and kernel // 2 >= min(whole):
        raise ValueError(
            f"regions='smooth' mirrors the image at its edges, and kernel={kernel} reaches "
            f'over a whole image of {tuple(whole)} pixels: choose a smaller kernel'
        )
    no_class = (segmentation < 0) | (segmentation >= num_classes)
    no_class |= segmentation == ignore_index
    labels = segmentation.long().masked_fill(no_class, num_classes)
    make = _smoothed if smooth else _dilated
    return make(labels, size, num_classes, kernel)


def _dilated(
    labels: Tensor, size: tuple[int, int] | torch.Size, num_classes: int, kernel: int
) -> Tensor:
    """Which classes occur in the square around each position.

    Each class is a bit of a word, so that one operation joins the classes of two pixels.
    """
    first = torch.arange(0, num_classes, BITS, device=labels.device)[:, None, None]
    bit = labels[:, None] - first
    words = torch.bitwise_left_shift(1, bit).masked_fill_((bit < 0) | (bit >= BITS), 0)
    half = kernel // 2
    words = torch.nn.functional.pad(words, (half, half, half, half))
    rows, columns = (
        torch.arange(count, device=labels.device) * length // count
        for length, count in zip(labels.shape[1:], size, strict=True)
    )
    found = square = torch.zeros_like(first)
    for offset in range(kernel):
        found = found | words.index_select(2, rows + offset)
    for offset in range(kernel):
        square = square | found.index_select(3, columns + offset)
    bits = torch.arange(min(BITS, num_classes), device=labels.device)[:, None]
    masks = square.flatten(2)[:, :, None].bitwise_right_shift(bits).bitwise_and_(1)
    return masks.flatten(1, 2)[:, :num_classes].double()


def _smoothed(
    labels: Tensor, size: tuple[int, int] | torch.Size, num_classes: int, kernel: int
) -> Tensor:
    """Means over squares, between the pixels of which positions lie."""
    # Only pixels that lie in the square of some position are read: those of its rows times
    # those of its columns.
    (rows, row_weights), (columns, column_weights) = (
        _taps(length, count, kernel, labels.device)
        for length, count in zip(labels.shape[1:], size, strict=True)
    )
    images, (height, width) = len(labels), size
    masks = row_weights.new_zeros(images, num_classes + 1, height * width)
    image = torch.arange(images, device=labels.device)[:, None, None]
    position = torch.arange(height * width, device=labels.device)
    first = image * (num_classes + 1) * height * width + position
    # One row of the squares after the other, because all pixels of all squares are many.
    for row, row_weight in zip(rows.unbind(1), row_weights.unbind(1), strict=True):
        index = labels[:, row][:, :, columns.T].permute(0, 2, 1, 3).flatten(2)
        index = index.mul_(height * width).add_(first)
        weights = (row_weight[:, None] * column_weights.T[:, None]).flatten(1).expand_as(index)
        # In one dimension PyTorch can make this deterministic on a GPU.
        masks.view(-1).scatter_add_(0, index.flatten(), weights.flatten())
    return masks[:, :num_classes]


def _taps(length: int, count: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of ``count`` positions, the pixels of an axis that its mean reads, and how much.

    Both are ``(count, pixels)``: two neighbouring means, mixed.
    """
    source = torch.arange(count, dtype=torch.float64, device=device) + 0.5
    source = (source * (length / count) - 0.5).clamp(0, length - 1)
    first = source.floor()
    part = (source - first)[:, None] / kernel
    # All but the outermost pixels are in both means.
    weight = torch.full((count, kernel + 1), 1.0 / kernel, device=device, dtype=torch.float64)
    weight = torch.cat([1.0 / kernel - part, weight[:, 2:], part], dim=1)
    offset = torch.arange(kernel + 1, device=device) - kernel // 2
    index = (first.long()[:, None] + offset).abs()
    return torch.where(index < length, index, (2 * length - 2 - index).clamp(min=0)), weight


def region_moments(
    maps: Tensor,
    masks: Tensor,
    regions: Regions = 'dilate',
    pixels: Pixels = 'inside',
    third_denominator: ThirdDenominator = 'std',
    eps: float = 1e-6,
) -> Tensor:
    r"""Mean, variance and skewness of each channel in each region.

    With the mask $w_p$ of a region and the features $f_p$ of a channel,

    $$
    \mu_1 = \frac{1}{n} \sum_p w_p f_p, \qquad
    \mu_2 = \frac{1}{n} \sum_p w_p (f_p - \mu_1)^2, \qquad
    \mu_3 = \frac{1}{n} \sum_p w_p \Bigl(\frac{f_p - \mu_1}{\sigma}\Bigr)^3
    $$

    where $n = \sum_p w_p$ is the area. With ``regions='smooth'``, $n$ is the
    number of positions instead, as in the authors' sketch.

    All sums are products of matrices in float64, because they cancel: no tensor has classes,
    channels and positions at once.

    Args:
        maps: Features, ``(N, C, H, W)``.
        masks: Regions, ``(N, K, H * W)``, float64, from [`region_masks`][].
        regions: What $n$ is.
        pixels: ``'inside'`` as above; ``'literal'`` takes $(w_p f_p - \mu_1)$ to the
            powers of 2 and 3, so that each position outside adds $(0 - \mu_1)$.
        third_denominator: $\sigma$ is ``'std'``, $\sqrt{\mu_2 + \epsilon}$, or
            ``'var'``, $\mu_2 + \epsilon$.
        eps: $\epsilon$, ``> 0``.

    Returns:
        Moments, ``(N, 3, K, C)``, float64; 0 for empty regions. The second and third are exactly
        0 where what they add up is 0, as in a region of one pixel or of constant values. So is
        the second where a channel varies by less than 1e-6, and the third by less than 1e-5, of
        its root mean square, measured from the mean of the image: they would be rounding error.

    Examples:
        >>> import torch
        >>> maps = torch.tensor([[[[0.0, 0.0, 3.0, 7.0]]]])
        >>> masks = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]], dtype=torch.float64)
        >>> region_moments(maps, masks).flatten().round(decimals=3)
        tensor([1.0000, 2.0000, 0.7070], dtype=torch.float64)
    """
    maps = maps.flatten(2)
    literal = pixels == 'literal'
    # Sums of powers cancel least around the mean. A constant: results do not depend on it.
    origin = maps.detach().mean(-1, keepdim=True).double()
    if literal:  # what is outside counts as 0
        origin = torch.zeros_like(origin)
    first, second, third = _PowerSums.apply(maps, masks, origin, literal)  # (N, K, C)

    area = masks.sum(-1, keepdim=True)
    positions = masks.shape[-1]
    count = area.clamp(min=1) if regions == 'dilate' else torch.full_like(area, positions)
    origin = origin.transpose(1, 2)
    centre = first / count + (area / count - 1) * origin  # the mean, measured from the origin
    zeroth = torch.full_like(area, positions) if literal else area
    square = (second + (centre.square() + (ROUNDED * origin).square()) * zeroth) / count
    variance = (second - 2 * centre * first + centre.square() * zeroth) / count
    variance = torch.where(variance <= CONSTANT * square, 0.0, variance)
    skew = third - 3 * centre * second + 3 * centre.square() * first - centre**3 * zeroth
    sigma = (variance + eps).sqrt() if third_denominator == 'std' else variance + eps
    skew = torch.where(variance <= FLAT * square, 0.0, skew / count / sigma**3)
    return torch.stack([origin + centre, variance, skew], dim=1)


class _PowerSums(torch.autograd.Function):
    """Sums of the first three powers of maps over regions, keeping only the maps for later.

    ``maps`` are ``(N, C, P)``, ``masks`` ``(N, K, P)`` and ``origin``, which the maps are
    measured from, ``(N, C, 1)``; the sums are ``(N, K, C)``. With ``mask_powers``, masks are
    raised to the power of their maps.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, masks: Tensor, origin: Tensor, mask_powers: bool
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(maps, masks, origin)
        ctx.mask_powers = mask_powers
        # The library multiplies rows in fours: 20 classes take less time than 19.
        classes = masks.shape[1]
        padding = -classes % 4
        sums = masks.new_zeros(3, len(maps), classes + padding, maps.shape[1])
        for x, mask in _blocks(maps, masks):
            mask = torch.nn.functional.pad(mask, (0, 0, 0, padding))
            mask, mask2, mask3 = _powers(mask, mask_powers)
            x = _from_origin(x, origin)
            power = x.square()
            sums[0].baddbmm_(mask, x.transpose(1, 2))
            sums[1].baddbmm_(mask2, power.transpose(1, 2))
            sums[2].baddbmm_(mask3, power.mul_(x).transpose(1, 2))
        return sums[:, :, :classes].unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, first: Tensor, second: Tensor, third: Tensor
    ) -> tuple[Tensor, None, None, None]:
        maps, masks, origin = ctx.saved_tensors
        # a + b x + c x^2 by Horner's rule
        a, b, c = (x.transpose(1, 2).contiguous() for x in (first, 2 * second, 3 * third))
        result = torch.empty_like(maps)
        for x, mask, block in _blocks(maps, masks, result):
            mask, mask2, mask3 = _powers(mask.contiguous(), ctx.mask_powers)
            x = _from_origin(x, origin)
            slope = (c @ mask3).mul_(x).baddbmm_(b, mask2)
            block.copy_(slope.mul_(x).baddbmm_(a, mask))
        return result, None, None, None


def _blocks(maps: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of positions, the last dimension, of maps ``(N, C, P)`` and other tensors."""
    images, channels, _ = maps.shape
    return in_blocks(maps, *others, dim=-1, width=images * channels, dtype=torch.float64, least=64)


def _from_origin(x: Tensor, origin: Tensor) -> Tensor:
    if not for_cache(x):
        return x - origin  # in one step, in float64
    return x.to(torch.float64, copy=True, memory_format=torch.contiguous_format).sub_(origin)


def _powers(masks: Tensor, mask_powers: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (masks, masks.square(), masks**3) if mask_powers else (masks, masks, masks)
