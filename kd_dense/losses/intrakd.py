"""Inter-region affinity knowledge distillation (IntRA-KD).

Hou et al., "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020.
https://arxiv.org/abs/2004.05304

The authors published no distillation code. What is certain about the method and what is a
choice stands in docs/methods/intrakd.md; every choice is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32, check_choice
from kd_dense.losses.base import DistillLoss, check_same_size

__all__ = [
    'AttentionMapLoss',
    'IntRALoss',
    'attention_map_loss',
    'intra_loss',
    'region_affinities',
    'region_masks',
    'region_moments',
]

Regions = Literal['dilate', 'smooth']
Pixels = Literal['inside', 'literal']
ThirdDenominator = Literal['std', 'var']
Normaliser = Literal['present', 'all']
MapNorm = Literal['l2', 'softmax']

# Where the variance is below this share of the mean square, the third moment is lost to
# rounding: it is cubed cancellation, (2**-52)**(2/3), with some margin.
FLAT = 1e-10
# Classes in a word of 64 bits, away from the sign.
BITS = 62
# Numbers of a map that are made float64 and raised to powers at a time: on a CPU what stays in
# its cache.
BLOCK = {'cpu': 2**17, 'cuda': 2**24}


def intra_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    num_classes: int,
    regions: Regions = 'dilate',
    kernel: int = 11,
    pixels: Pixels = 'inside',
    third_denominator: ThirdDenominator = 'std',
    normaliser: Normaliser = 'present',
    eps: float | None = None,
    cos_eps: float = 1e-12,
    ignore_label: int = 255,
) -> Tensor:
    r"""Match how similar the classes of an image look to each other.

    The pixels of a class, and those around them, are its region. Mean, variance and skewness
    of every channel describe a region; the cosine between two regions' vectors is their
    affinity. With the affinities $A$ of student and teacher, the moments $m$ and
    the $n$ classes that an image has,

    $$
    \frac{1}{N} \sum_{\text{images}} \frac{1}{3 n^2} \sum_{m=1}^{3} \sum_{r, q}
        \bigl(A^S_m(r, q) - A^T_m(r, q)\bigr)^2
    $$

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features, ``(N, C', H, W)``; the channels may differ. No gradient flows
            into it.
        segmentation: Class of every pixel, ``(N, H', W')``, of any resolution, integers.
        num_classes: Classes are ``0 .. num_classes - 1``; other labels belong to no region.
        regions: See [`region_masks`][], as ``kernel`` and ``ignore_label``.
        kernel: Side of the square around a pixel, odd, in pixels of the segmentation.
        pixels: See [`region_moments`][], as ``third_denominator`` and ``eps``.
        third_denominator: ``'std'`` or ``'var'``.
        normaliser: What $n$ counts: ``'present'``, the classes that have a region in
            the image, or ``'all'`` classes. Absent classes are left out of the sum in both.
        eps: ``> 0``; ``None`` is 1e-6 with ``'dilate'`` and 1e-10 with ``'smooth'``.
        cos_eps: See [`region_affinities`][].
        ignore_label: Label of pixels that belong to no region, even if it is a class.

    Returns:
        Scalar, at least float32. An image without any region contributes 0.

    Raises:
        ValueError: If batch, sizes or an argument do not fit.

    Examples:
        >>> import torch
        >>> segmentation = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 255]]])
        >>> teacher = torch.tensor([[[[0.0, 2.0, 4.0, 8.0], [1.0, 1.0, 5.0, 9.0]]]])
        >>> same = torch.cat([teacher, 2 * teacher], dim=1)
        >>> intra_loss(same, teacher, segmentation, num_classes=2, kernel=1).round(decimals=3)
        tensor(0.)
        >>> other = torch.cat([teacher, teacher.flip(-1)], dim=1)
        >>> intra_loss(other, teacher, segmentation, num_classes=2, kernel=1).round(decimals=3)
        tensor(0.1500)
    """
    check_same_size('intra_loss', student, teacher)
    _check_choices(
        'intra_loss',
        num_classes,
        regions,
        kernel,
        pixels,
        third_denominator,
        normaliser,
        eps,
        cos_eps,
    )
    if segmentation.dim() != 3 or len(segmentation) != len(student):
        raise ValueError(
            f'intra_loss expects a segmentation of shape (N, H, W) with N={len(student)} as in '
            f'the maps, got {tuple(segmentation.shape)}'
        )
    if segmentation.is_floating_point():
        raise ValueError(
            f'intra_loss expects a segmentation of integers, got {segmentation.dtype}; '
            'take the index of the class, not its probability'
        )
    masks = region_masks(
        segmentation, student.shape[-2:], num_classes, regions, kernel, ignore_label
    )
    if eps is None:
        eps = 1e-6 if regions == 'dilate' else 1e-10
    affinities = [
        region_affinities(
            region_moments(maps, masks, regions, pixels, third_denominator, eps), cos_eps
        )
        for maps in (student, teacher.detach())
    ]
    per_image = (affinities[0] - affinities[1]).square().sum((1, 2, 3))
    if normaliser == 'present':
        present = (masks > 0).any(-1).sum(-1).clamp(min=1)
        per_image = per_image / (3 * present.square())
    else:
        per_image = per_image / (3 * num_classes**2)
    return per_image.mean().to(torch.promote_types(student.dtype, torch.float32))


def region_masks(
    segmentation: Tensor,
    size: tuple[int, int] | torch.Size,
    num_classes: int,
    regions: Regions = 'dilate',
    kernel: int = 11,
    ignore_label: int = 255,
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
        ignore_label: Label of pixels that belong to no region, even if it is a class.

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
    no_class |= segmentation == ignore_label
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
        Moments, ``(N, 3, K, C)``, float64; 0 for empty regions. The third is 0 where a
        channel varies in a region by less than 1e-5 of its root mean square, measured from
        the mean of the image: its value would be rounding error.

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
    mean = (first + area * origin) / count
    centre = mean - origin
    zeroth = torch.full_like(area, positions) if literal else area
    variance = (second - 2 * centre * first + centre.square() * zeroth) / count
    variance = variance.clamp(min=0)
    skew = third - 3 * centre * second + 3 * centre.square() * first - centre**3 * zeroth
    sigma = (variance + eps).sqrt() if third_denominator == 'std' else variance + eps
    flat = variance <= FLAT * (second / count + centre.square())
    skew = torch.where(flat, 0.0, skew / count / sigma**3)
    return torch.stack([mean, variance, skew], dim=1)


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


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of positions, the last dimension, of tensors whose first is maps ``(N, C, P)``."""
    maps = tensors[0]
    images, channels, _ = maps.shape
    size = max(BLOCK.get(maps.device.type, BLOCK['cpu']) // (images * channels), 64)
    return zip(*(x.split(size, -1) for x in tensors), strict=True)


def _from_origin(x: Tensor, origin: Tensor) -> Tensor:
    return x.to(torch.float64, copy=True, memory_format=torch.contiguous_format).sub_(origin)


def _powers(masks: Tensor, mask_powers: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (masks, masks.square(), masks**3) if mask_powers else (masks, masks, masks)


def region_affinities(moments: Tensor, cos_eps: float = 1e-12) -> Tensor:
    r"""Cosine of each pair of regions over the channels, for each moment.

    $$
    A_m(r, q) = \frac{a \cdot b}{\sqrt{|a|^2 + \epsilon} \sqrt{|b|^2 + \epsilon}}
    $$

    Args:
        moments: ``(N, 3, K, C)``, from [`region_moments`][].
        cos_eps: $\epsilon$, ``> 0``; keeps regions without variance at 0.

    Returns:
        Affinities, ``(N, 3, K, K)``.

    Examples:
        >>> import torch
        >>> moments = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0]]).expand(1, 3, 3, 2)
        >>> region_affinities(moments)[0, 0].round(decimals=3)
        tensor([[1.0000, 0.7070, 0.0000],
                [0.7070, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    unit = moments / (moments.square().sum(-1, keepdim=True) + cos_eps).sqrt()
    return unit @ unit.transpose(-1, -2)


def _check_choices(
    owner: str,
    num_classes: int,
    regions: str,
    kernel: int,
    pixels: str,
    third_denominator: str,
    normaliser: str,
    eps: float | None,
    cos_eps: float,
) -> None:
    if num_classes < 1:
        raise ValueError(f'{owner} expects num_classes >= 1, got {num_classes}')
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f'{owner} expects an odd kernel >= 1, got kernel={kernel}')
    check_choice(owner, 'regions', regions, Regions)
    check_choice(owner, 'pixels', pixels, Pixels)
    check_choice(owner, 'third_denominator', third_denominator, ThirdDenominator)
    check_choice(owner, 'normaliser', normaliser, Normaliser)
    for name, value in (('eps', eps), ('cos_eps', cos_eps)):
        if value is not None and not value > 0:
            raise ValueError(f'{owner} expects {name} > 0, got {name}={value}')


class IntRALoss(DistillLoss):
    """Module form of [`intra_loss`][], times ``weight``.

    Args:
        num_classes: Classes of the data set, as the head's.
        weight: Factor on the result.
        regions: See [`intra_loss`][], as the other arguments.

    Examples:
        >>> import torch
        >>> loss = IntRALoss(num_classes=19, weight=0.5)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> segmentation = torch.randint(19, (2, 64, 64))
        >>> loss(student, torch.randn(2, 64, 8, 8), segmentation=segmentation).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    needs = ('segmentation',)
    any_channels = True

    def __init__(
        self,
        num_classes: int,
        weight: float = 1.0,
        regions: Regions = 'dilate',
        kernel: int = 11,
        pixels: Pixels = 'inside',
        third_denominator: ThirdDenominator = 'std',
        normaliser: Normaliser = 'present',
        eps: float | None = None,
        cos_eps: float = 1e-12,
        ignore_label: int = 255,
    ) -> None:
        super().__init__(weight)
        _check_choices(
            'IntRALoss',
            num_classes,
            regions,
            kernel,
            pixels,
            third_denominator,
            normaliser,
            eps,
            cos_eps,
        )
        self.num_classes = num_classes
        self.regions: Regions = regions
        self.kernel = kernel
        self.pixels: Pixels = pixels
        self.third_denominator: ThirdDenominator = third_denominator
        self.normaliser: Normaliser = normaliser
        self.eps = eps
        self.cos_eps = cos_eps
        self.ignore_label = ignore_label

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * intra_loss(
            student,
            teacher,
            segmentation,
            self.num_classes,
            self.regions,
            self.kernel,
            self.pixels,
            self.third_denominator,
            self.normaliser,
            self.eps,
            self.cos_eps,
            self.ignore_label,
        )


def attention_map_loss(
    student: Tensor, teacher: Tensor, norm: MapNorm = 'l2', eps: float = 1e-12
) -> Tensor:
    r"""Match where the activation of all channels together lies.

    The squares of a map are summed over its channels, $a_p = \sum_c f_{c, p}^2$, the
    result is normalised over the positions, and compared:

    $$
    \frac{1}{N} \sum_{\text{images}} \sum_p (\hat a^S_p - \hat a^T_p)^2
    $$

    | ``norm`` | $\hat a$ | from |
    |-|-|-|
    | ``l2`` | $a / \sqrt{\lVert a \rVert^2 + \epsilon}$ | attention transfer [1] |
    | ``softmax`` | softmax over the positions | self attention distillation [2] |

    Either way it lies between 0 and 2. (The code of attention transfer divides by the number
    of positions.)

    [1] Zagoruyko and Komodakis, ICLR 2017. [2] Hou et al., ICCV 2019.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features, ``(N, C', H, W)``; the channels may differ. No gradient flows
            into it.
        norm: See the table.
        eps: $\epsilon$, ``> 0``; a map that is 0 everywhere stays 0.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes do not fit, or ``norm`` or ``eps`` is none of the above.

    Examples:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]]]])
        >>> attention_map_loss(torch.cat([teacher, 3 * teacher], dim=1), teacher)
        tensor(0.)
        >>> attention_map_loss(teacher.flip(-1), teacher)
        tensor(2.)
    """
    check_same_size('attention_map_loss', student, teacher)
    _check_map_norm('attention_map_loss', norm, eps)
    student = attention_maps(at_least_float32(student), norm, eps)
    teacher = attention_maps(at_least_float32(teacher.detach()), norm, eps)
    return (student - teacher).square().sum(1).mean()


def attention_maps(maps: Tensor, norm: MapNorm, eps: float) -> Tensor:
    attention = maps.square().sum(1).flatten(1)
    if norm == 'softmax':
        return attention.softmax(1)
    return attention / (attention.square().sum(1, keepdim=True) + eps).sqrt()


def _check_map_norm(owner: str, norm: str, eps: float) -> None:
    check_choice(owner, 'norm', norm, MapNorm)
    if not eps > 0:
        raise ValueError(f'{owner} expects eps > 0, got eps={eps}')


class AttentionMapLoss(DistillLoss):
    """Module form of [`attention_map_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        norm: See [`attention_map_loss`][], as ``eps``.

    Examples:
        >>> import torch
        >>> loss = AttentionMapLoss(weight=10.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(self, weight: float = 1.0, norm: MapNorm = 'l2', eps: float = 1e-12) -> None:
        super().__init__(weight)
        _check_map_norm('AttentionMapLoss', norm, eps)
        self.norm: MapNorm = norm
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * attention_map_loss(student, teacher, self.norm, self.eps)
