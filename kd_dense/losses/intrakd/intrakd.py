"""Inter-region affinity knowledge distillation (IntRA-KD).

Hou et al., "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020.
https://arxiv.org/abs/2004.05304

The authors published no distillation code. What is certain about the method and what is a
choice stands in docs/methods/intrakd.md; every choice is an argument.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kd_dense.functional import check_choice
from kd_dense.losses.base import DistillLoss, check_same_size
from kd_dense.losses.intrakd.regions import (
    Pixels,
    Regions,
    ThirdDenominator,
    moments_together,
    region_masks,
)

__all__ = ['IntRALoss', 'intra_loss', 'region_affinities']

Normaliser = Literal['present', 'all']


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
    ignore_index: int = 255,
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
        regions: See [`region_masks`][], as ``kernel`` and ``ignore_index``.
        kernel: Side of the square around a pixel, odd, in pixels of the segmentation.
        pixels: See [`region_moments`][kd_dense.losses.intrakd.regions.region_moments], as
            ``third_denominator`` and ``eps``.
        third_denominator: ``'std'`` or ``'var'``.
        normaliser: What $n$ counts: ``'present'``, the classes that have a region in
            the image, or ``'all'`` classes. Absent classes are left out of the sum in both.
        eps: ``> 0``; ``None`` is 1e-6 with ``'dilate'`` and 1e-10 with ``'smooth'``.
        cos_eps: See [`region_affinities`][].
        ignore_index: Label of pixels that belong to no region, even if it is a class.

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
        segmentation, student.shape[-2:], num_classes, regions, kernel, ignore_index
    )
    if eps is None:
        eps = 1e-6 if regions == 'dilate' else 1e-10
    both = [student, teacher.detach()]
    ours, theirs = moments_together(both, masks, regions, pixels, third_denominator, eps)
    present = normaliser == 'present'
    counted = masks.any(-1).sum(-1).clamp(min=1) if present else num_classes
    distance: Tensor = _AffinityDistance.apply(ours, theirs, counted, cos_eps)
    return distance.to(torch.promote_types(student.dtype, torch.float32))


def region_affinities(moments: Tensor, cos_eps: float = 1e-12) -> Tensor:
    r"""Cosine of each pair of regions over the channels, for each moment.

    $$
    A_m(r, q) = \frac{a \cdot b}{\sqrt{|a|^2 + \epsilon} \sqrt{|b|^2 + \epsilon}}
    $$

    Args:
        moments: ``(N, 3, K, C)``, from
            [`region_moments`][kd_dense.losses.intrakd.regions.region_moments].
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
    unit = moments * _inverse_norms(moments, cos_eps)
    return unit @ unit.mT


def _inverse_norms(moments: Tensor, cos_eps: float) -> Tensor:
    return (moments.square().sum(-1, keepdim=True) + cos_eps).rsqrt()


class _AffinityDistance(torch.autograd.Function):
    """Mean over images, moments and pairs of regions of the squared difference of affinities.

    Moments are ``(N, 3, K, C)``; an image has ``counted`` regions, ``(N,)`` or one number.
    """

    @staticmethod
    def forward(
        ctx: Any, ours: Tensor, theirs: Tensor, counted: Tensor | int, cos_eps: float
    ) -> Tensor:
        images = len(ours)
        ours, theirs = ours.flatten(0, 1), theirs.flatten(0, 1)
        inverse = _inverse_norms(ours, cos_eps)
        ours, theirs = ours * inverse, theirs * _inverse_norms(theirs, cos_eps)
        difference = torch.bmm(theirs, theirs.mT).baddbmm_(ours, ours.mT, beta=-1)
        distances = torch.linalg.vector_norm(difference.view(images, -1), dim=1) / counted
        ctx.save_for_backward(ours, inverse, difference)
        ctx.images, ctx.counted = images, counted
        return torch.dot(distances, distances) / (3 * images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, difference = ctx.saved_tensors
        grad = torch.bmm(difference, unit)
        along = (grad * unit).sum(-1, keepdim=True)
        grad.addcmul_(unit, along, value=-1).mul_(inverse)
        factor = upstream * (4 / (3 * ctx.images)) / ctx.counted / ctx.counted
        grad = grad.unflatten(0, (ctx.images, 3))
        return grad.mul_(factor.view(-1, 1, 1, 1)), None, None, None


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
    divides_by_images = True

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
        ignore_index: int = 255,
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
        self.ignore_index = ignore_index

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
            self.ignore_index,
        )
