"""Which region of an image a class has, and what describes it, for IntRA-KD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
# Classes in a word of 32 bits, away from the sign.
BITS = 31


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
    labels = segmentation.long()
    if smooth:
        no_class = (labels < 0) | (labels >= num_classes) | (labels == ignore_index)
        labels = labels.masked_fill(no_class, num_classes)
        return _smoothed(labels, size, num_classes, kernel)
    masks = [
        _dilated(labels - first if first else labels, size, count, kernel, ignore_index - first)
        for first in range(0, num_classes, BITS)
        for count in [min(BITS, num_classes - first)]
    ]
    return torch.cat(masks, 1) if len(masks) > 1 else masks[0]


def _dilated(
    labels: Tensor, size: tuple[int, int] | torch.Size, count: int, kernel: int, ignored: int
) -> Tensor:
    """Which of the first classes occur in the square around each position.

    Each class is a bit of a word, so that one operation joins the classes of two pixels.
    """
    classes = torch.arange(count, device=labels.device, dtype=torch.int32)
    bits = torch.bitwise_left_shift(1, classes)
    bit_of = torch.nn.functional.pad(bits, (0, 2))  # none of labels beyond, and of -1, the last
    if 0 <= ignored < count:
        bit_of[ignored].zero_()
    half = kernel // 2
    words = torch.nn.functional.pad(bit_of[labels.clamp(-1, count)], (half, half, half, half))
    for dim, length in zip((1, 2), size, strict=True):
        whole, width = labels.shape[dim], 1
        while width < kernel:  # windows of twice the width, each time
            step = min(width, kernel - width)
            rest = words.shape[dim] - step
            words = words.narrow(dim, 0, rest) | words.narrow(dim, step, rest)
            width += step
        if whole % length == 0:
            words = words.unflatten(dim, (length, -1)).select(dim + 1, 0)
            continue
        nearest = torch.arange(0, length * whole, whole, device=labels.device) // length
        words = words.index_select(dim, nearest)
    found = words[:, None] & bits[:, None, None]
    masks = torch.empty(found.shape, dtype=torch.float64, device=labels.device)
    return torch.ne(found, 0, out=masks).flatten(2)


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
    (moments,) = moments_together([maps], masks, regions, pixels, third_denominator, eps)
    return moments


def moments_together(
    maps: Sequence[Tensor],
    masks: Tensor,
    regions: Regions,
    pixels: Pixels,
    third_denominator: ThirdDenominator,
    eps: float,
) -> Sequence[Tensor]:
    """[`region_moments`][] of several maps, in as many steps on small tensors as of one."""
    literal, power = pixels == 'literal', -1.5 if third_denominator == 'std' else -3.0
    found: Sequence[Tensor] = _Moments.apply(
        masks, regions == 'dilate', literal, power, eps, *(x.flatten(2) for x in maps)
    )
    return found


class _Moments(torch.autograd.Function):
    """What [`region_moments`][] says, of maps ``(N, C, P)``, and its gradient.

    All maps lie side by side in what is ``(N, K, C)``. Of what is large, the maps alone are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        masks: Tensor,
        by_area: bool,
        literal: bool,
        power: float,
        eps: float,
        *maps: Tensor,
    ) -> tuple[Tensor, ...]:
        # Sums of powers cancel least around the mean. A constant: results do not depend on it.
        origin = torch.cat([_means(x) for x in maps], 1).double()
        if literal:  # what is outside counts as 0
            origin = torch.zeros_like(origin)
        channels = [x.shape[1] for x in maps]
        sums = [
            _power_sums(*one, masks, literal)
            for one in zip(maps, origin.split(channels, 1), strict=True)
        ]
        first, second, third = (torch.cat(sums, 3) if len(sums) > 1 else sums[0]).unbind()
        origin = origin.mT

        area, positions = masks.sum(-1, keepdim=True), masks.shape[-1]
        count = area.clamp(min=1) if by_area else torch.full_like(area, positions)
        zeroth = torch.full_like(area, positions) if literal else area
        # The mean, measured from the origin.
        centre = torch.addcmul(first, area - count, origin).div_(count)
        square = centre.square()
        # Sums of squares around the mean, and around the origin with what may be rounded of it.
        around = torch.addcmul(second, centre, first, value=-2).addcmul_(square, zeroth)
        raw = torch.addcmul(square, origin, origin, value=ROUNDED**2)
        share = around / torch.addcmul(second, raw, zeroth)
        of_variance = (share > CONSTANT) / count
        variance = around.mul_(of_variance)
        spread = variance + eps
        of_skew = spread.pow(power).mul_(share > FLAT).div_(count)
        cubes = torch.addcmul(third, centre, second, value=-3)
        cubes.addcmul_(square, torch.addcmul(first, centre, zeroth, value=-1 / 3), value=3)
        skew = cubes.mul_(of_skew)

        ctx.channels, ctx.literal, ctx.power = channels, literal, power
        small = (first, centre, square, variance, spread, skew, of_variance, of_skew)
        ctx.maps = len(maps)
        ctx.save_for_backward(*maps, masks, origin, count, zeroth, *small)
        ctx.set_materialize_grads(False)
        moments = torch.stack([origin + centre, variance, skew], 1)
        return tuple(moments.split(channels, 3))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        maps, (masks, origin, count, zeroth, *small) = saved[: ctx.maps], saved[ctx.maps :]
        cut = zip(*(x.split(ctx.channels, 2) for x in (origin, *small)), strict=True)
        results: list[Tensor | None] = [None] * 5
        for index, (x, grad, known) in enumerate(zip(maps, grads, cut, strict=True), 5):
            if grad is None or not ctx.needs_input_grad[index]:
                results.append(None)
                continue
            origin, first, centre, square, variance, spread, skew, of_variance, of_skew = known
            mean, second, third = grad.unbind(1)
            third = third * of_skew
            second = torch.addcmul(second, grad[:, 2], skew / spread, value=ctx.power)
            second.mul_(of_variance)
            lever = torch.addcmul(first, centre, zeroth, value=-1).div_(count).add_(centre)
            mean = (mean / count).addcmul_(second, lever, value=-2)
            mean.addcmul_(third, square - variance, value=3)
            second.addcmul_(centre, third, value=-3)
            into_sums = (mean, second, third)
            results.append(_into_maps(x, origin.mT, masks, into_sums, ctx.literal))
        return tuple(results)


def _means(maps: Tensor) -> Tensor:
    """Of maps ``(N, C, P)``, ``(N, C, 1)``: where that takes no copy, in float64."""
    return maps.mean(-1, keepdim=True, dtype=None if for_cache(maps) else torch.float64)


def _power_sums(maps: Tensor, origin: Tensor, masks: Tensor, mask_powers: bool) -> Tensor:
    """Sums of the first three powers of maps over regions, ``(3, N, K, C)``.

    Args:
        maps: ``(N, C, P)``.
        origin: What they are measured from, ``(N, C, 1)``.
        masks: ``(N, K, P)``.
        mask_powers: Whether masks are raised to the power of their maps.
    """
    # A CPU's library multiplies rows in fours: 20 classes take less time than 19.
    classes = masks.shape[1]
    padding = -classes % 4 if for_cache(maps) else 0
    sums = masks.new_empty(3, len(maps), classes + padding, maps.shape[1])
    first, second, third = sums
    for index, (x, mask) in enumerate(_blocks(maps, masks)):
        if padding:
            mask = torch.nn.functional.pad(mask, (0, 0, 0, padding))
        mask, mask2, mask3 = _powers(mask, mask_powers)
        x, kept = _from_origin(x, origin), min(index, 1)
        torch.baddbmm(first, mask, x.mT, beta=kept, out=first)
        power = x.square()
        torch.baddbmm(second, mask2, power.mT, beta=kept, out=second)
        torch.pow(x, 3, out=power)
        torch.baddbmm(third, mask3, power.mT, beta=kept, out=third)
    return sums[:, :, :classes]


def _into_maps(
    maps: Tensor, origin: Tensor, masks: Tensor, grads: Sequence[Tensor], mask_powers: bool
) -> Tensor:
    """The gradient by maps, from those by their three power sums, ``(N, K, C)`` each."""
    result = torch.empty_like(maps)
    # a + 2 b x + 3 c x^2 by Horner's rule
    a, b, c = (x.mT.contiguous() if for_cache(x) else x.mT for x in grads)
    for x, mask, block in _blocks(maps, masks, result):
        mask, mask2, mask3 = _powers(mask.contiguous(), mask_powers)
        x = _from_origin(x, origin)
        half = torch.bmm(c, mask3).mul_(x).baddbmm_(b, mask2, beta=1.5)
        block.copy_(half.mul_(x).baddbmm_(a, mask, beta=2))
    return result


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
