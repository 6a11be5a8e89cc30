"""Attention maps: where the activation of all channels together lies.

Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of
Convolutional Neural Networks via Attention Transfer", ICLR 2017.
https://arxiv.org/abs/1612.03928

Hou et al., "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019.
https://arxiv.org/abs/1908.00821

Feng et al., "Double Similarity Distillation for Semantic Image Segmentation", IEEE TIP 2021.
https://arxiv.org/abs/2107.08591

AT equals MMRazor (Apache-2.0), SAD ENet-SAD_Pytorch (MIT). AT's own code and CIRKD, which has DSD,
have no licence: the formulas alone were taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import (
    at_least_float32,
    better_together,
    check_choice,
    squared_norm,
    unit,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_size

__all__ = [
    'ATLoss',
    'AttentionChangeLoss',
    'AttentionMapLoss',
    'SADLoss',
    'attention_change_loss',
    'attention_map_loss',
    'attention_maps',
    'sad_loss',
]

MapNorm = Literal['l2', 'softmax']
Reduction = Literal['image', 'position']


def attention_map_loss(
    student: Tensor,
    teacher: Tensor,
    norm: MapNorm = 'l2',
    eps: float = 1e-12,
    reduction: Reduction = 'image',
) -> Tensor:
    r"""Match where the activation of all channels together lies.

    The squares of a map are summed over its channels, $a_p = \sum_c f_{c, p}^2$, the
    result is normalised over the positions, and compared:

    $$
    \frac{1}{N} \sum_{\text{images}} \sum_p (\hat a^S_p - \hat a^T_p)^2
    $$

    | ``norm`` | $\hat a$ | from |
    |-|-|-|
    | ``l2`` | $a / \sqrt{\lVert a \rVert^2 + \epsilon}$ | attention transfer |
    | ``softmax`` | softmax over the positions | self attention distillation |

    Either way it lies between 0 and 2. ``reduction='position'`` divides it by the number of
    positions, as the code of attention transfer does: a weight from there belongs to maps of one
    size.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features, ``(N, C', H, W)``; the channels may differ. No gradient flows
            into it.
        norm: See the table.
        eps: $\epsilon$, ``> 0``; a map that is 0 everywhere stays 0.
        reduction: ``'image'``, a sum over the positions, or ``'position'``, their mean.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes do not fit, or an argument is none of the above.

    Examples:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]]]])
        >>> attention_map_loss(torch.cat([teacher, 3 * teacher], dim=1), teacher)
        tensor(0.)
        >>> attention_map_loss(teacher.flip(-1), teacher)
        tensor(2.)
    """
    check_same_size('attention_map_loss', student, teacher)
    _check_map_norm('attention_map_loss', norm, eps, reduction)
    student = attention_maps(at_least_float32(student), norm, eps)
    teacher = attention_maps(at_least_float32(teacher.detach()), norm, eps)
    squares = (student - teacher).square()
    return squares.mean() if reduction == 'position' else squares.sum(1).mean()


def attention_maps(maps: Tensor, norm: MapNorm, eps: float) -> Tensor:
    """Where maps ``(N, C, H, W)`` are active, ``(N, H W)``, normalised over the positions."""
    return _over_positions(squared_norm(maps).flatten(1), norm, eps)


def _over_positions(attention: Tensor, norm: MapNorm, eps: float) -> Tensor:
    if norm == 'softmax':
        return attention.softmax(1)
    return unit(attention, 1, eps)


def _check_map_norm(owner: str, norm: str, eps: float, reduction: str) -> None:
    check_choice(owner, 'norm', norm, MapNorm)
    check_choice(owner, 'reduction', reduction, Reduction)
    if not eps > 0:
        raise ValueError(f'{owner} expects eps > 0, got eps={eps}')


def sad_loss(student: Tensor, later: Tensor, detach: bool = True) -> Tensor:
    r"""Match where a stage of a network is active with where a later stage of it is.

    With $a_p = \sum_c f_{c, p}^2$ of each, that of the later stage enlarged to the size of
    the student's bilinearly, and the softmax over the P positions,

    $$
    \frac{1}{N P} \sum_{n, p}
        \bigl(\mathrm{softmax}(a^s_n)_p - \mathrm{softmax}(a^{later}_n)_p\bigr)^2
    $$

    Args:
        student: Features of a stage, ``(N, C, H, W)``, any float dtype.
        later: Features of a stage behind it, ``(N, C', H', W')``, or of a teacher.
        detach: Whether no gradient flows into ``later``, as the paper has it. In the public
            code both stages move towards each other, which is ``False``.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If these are no maps of as many images.

    Examples:
        >>> import torch
        >>> early = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
        >>> sad_loss(early, early.sum(3, keepdim=True)).round(decimals=4)
        tensor(0.0157)
        >>> sad_loss(early, early)
        tensor(0.)
    """
    if not (student.dim() == later.dim() == 4 and len(student) == len(later)):
        raise ValueError(
            'sad_loss expects two maps (N, C, H, W) of as many images, got '
            f'{tuple(student.shape)} and {tuple(later.shape)}'
        )
    if detach:
        later = later.detach()
    with without_autocast(student):
        early, deep = (squared_norm(at_least_float32(x))[:, None] for x in (student, later))
        if deep.shape != early.shape:
            deep = F.interpolate(deep, early.shape[2:], mode='bilinear', align_corners=False)
        early, deep = (_over_positions(x.flatten(1), 'softmax', 0.0) for x in (early, deep))
        return (early - deep.to(early.dtype)).square().mean()


def attention_change_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], eps: float = 1e-12
) -> Tensor:
    r"""Match how attention moves from layer to layer.

    With the attention $\hat a$ of each layer, as in [`attention_map_loss`][] with its norm
    ``l2``, over all pairs of two of the L layers,

    $$
    \frac{2}{L (L - 1)} \sum_{k < l} \frac{1}{N P} \sum_{n, p} \bigl(
        \nu(\hat a^S_{k} - \hat a^S_{l})_{n, p} - \nu(\hat a^T_{k} - \hat a^T_{l})_{n, p}
    \bigr)^2
    $$

    where $\nu$ divides by the 2-norm over the positions of an image.

    Args:
        student: Features of two layers or more, ``(N, C, H, W)`` each; the channels may differ.
        teacher: As many, of the same sizes. No gradient flows into them.
        eps: As in [`attention_map_loss`][].

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If there are not two layers, or the layers are of different sizes.

    Examples:
        >>> import torch
        >>> maps = [torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])]
        >>> attention_change_loss(maps, maps)
        tensor(0.)
        >>> attention_change_loss(maps, maps[::-1]).round(decimals=4)
        tensor(2.)
    """
    sizes = {x.shape[2:] for x in (*student, *teacher)}
    if len(student) < 2 or len(student) != len(teacher) or len(sizes) > 1:
        shapes = [[tuple(x.shape) for x in maps] for maps in (student, teacher)]
        raise ValueError(
            'attention_change_loss expects the maps of two layers or more, (N, C, H, W) of one '
            f'size, and as many of the teacher, got {shapes[0]} and {shapes[1]}'
        )
    ours = [attention_maps(at_least_float32(x), 'l2', eps) for x in student]
    theirs = [attention_maps(at_least_float32(x.detach()), 'l2', eps) for x in teacher]
    apart = []
    for k, last in combinations(range(len(ours)), 2):
        moved, wanted = (_over_positions(x[k] - x[last], 'l2', eps) for x in (ours, theirs))
        apart.append((moved - wanted.to(moved.dtype)).square().mean())
    return torch.stack(apart).mean()


class AttentionMapLoss(DistillLoss):
    """Module form of [`attention_map_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        norm: See [`attention_map_loss`][], as the other arguments.

    Examples:
        >>> import torch
        >>> loss = AttentionMapLoss(weight=10.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(
        self,
        weight: float = 1.0,
        norm: MapNorm = 'l2',
        eps: float = 1e-12,
        reduction: Reduction = 'image',
    ) -> None:
        super().__init__(weight)
        _check_map_norm(type(self).__name__, norm, eps, reduction)
        self.norm: MapNorm = norm
        self.eps = eps
        self.reduction: Reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * attention_map_loss(
            student, teacher, self.norm, self.eps, self.reduction
        )

    @classmethod
    def over_maps(
        cls,
        losses: Sequence[AttentionMapLoss],
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        **needs: Any,
    ) -> Tensor:
        loss = losses[0]
        if loss.norm != 'l2' or not better_together(students):
            found: Tensor = super().over_maps(losses, students, teachers, **needs)
            return found
        for maps in zip(students, teachers, strict=True):
            check_same_size('attention_map_loss', *maps)
        ours, theirs = (
            unit(_side_by_side(maps), eps=loss.eps)
            for maps in (students, [x.detach() for x in teachers])
        )
        apart = F.mse_loss(ours, theirs.to(ours.dtype), reduction='none').sum((1, 2))
        images, positions = len(students[0]), [x.shape[2:].numel() for x in students]
        each = positions if loss.reduction == 'position' else [1] * len(positions)
        # A copy that does not make the host wait for the device.
        factors = torch.tensor([loss.weight / images / n for n in each], dtype=apart.dtype)
        return torch.dot(apart, factors.to(apart.device, non_blocking=True))


def _side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """The squares of L maps over channels, ``(L, N, P)``: 0 behind the smaller ones."""
    rows = [squared_norm(at_least_float32(x)).flatten(1) for x in maps]
    longest = max(row.shape[1] for row in rows)
    return torch.stack([F.pad(row, (0, longest - row.shape[1])) for row in rows])


class ATLoss(AttentionMapLoss):
    """Attention transfer: [`attention_map_loss`][] with the mean over the positions.

    The authors' weight is 1000 for pictures of 32 pixels; CIRKD's, on Cityscapes, 10000.

    Args:
        weight: Factor on the result.
        eps: See [`attention_map_loss`][].

    Examples:
        >>> import torch
        >>> loss = ATLoss(weight=1000.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, weight: float = 1.0, eps: float = 1e-12) -> None:
        super().__init__(weight, 'l2', eps, 'position')


class SADLoss(DistillLoss):
    """Module form of [`sad_loss`][], times ``weight``.

    In the place of the teacher's map stands that of a later stage of the student itself: a term
    with ``teacher=None``. The authors' weight is 0.1, in the second part of a training.

    Args:
        weight: Factor on the result.
        detach: See [`sad_loss`][].

    Examples:
        >>> import torch
        >>> loss = SADLoss(weight=0.1)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 4, 4)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True
    any_size = True

    def __init__(self, weight: float = 1.0, detach: bool = True) -> None:
        super().__init__(weight)
        self.detach = detach

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * sad_loss(student, teacher, self.detach)


class AttentionChangeLoss(DistillLoss):
    """Module form of [`attention_change_loss`][], times ``weight``: the other half of DSD.

    Runs of the CIRKD repository have a weight of 1000.

    Args:
        weight: Factor on the result.
        eps: See [`attention_map_loss`][].

    Examples:
        >>> import torch
        >>> loss = AttentionChangeLoss(weight=1000.0)
        >>> student = [torch.randn(2, c, 8, 8, requires_grad=True) for c in (16, 32)]
        >>> loss(student, [torch.randn(2, c, 8, 8) for c in (64, 128)]).backward()
        >>> student[0].grad.shape
        torch.Size([2, 16, 8, 8])
    """

    all_maps = True
    any_channels = True

    def __init__(self, weight: float = 1.0, eps: float = 1e-12) -> None:
        super().__init__(weight)
        _check_map_norm('AttentionChangeLoss', 'l2', eps, 'position')
        self.eps = eps

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return self.weight * attention_change_loss(student, teacher, self.eps)
