"""One comparison of two maps, position by position, that many methods are cases of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import (
    at_least_float32,
    check_choice,
    standardised,
    standardised_together,
    sum_over_ranks,
    unit,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, total

__all__ = ['DISTANCES', 'MimicLoss', 'mimic_loss', 'normed']

Norm = Literal['none', 'batch', 'image', 'map', 'position']
Distance = Literal['l1', 'squared', 'half_squared', 'smooth_l1']
Reduction = Literal['mean', 'position', 'image', 'root']

# The dimensions over which a norm takes mean and standard deviation.
STATISTICS: dict[str, tuple[int, ...]] = {'batch': (0, 2, 3), 'image': (2, 3)}


def mimic_loss(
    student: Tensor,
    teacher: Tensor,
    norm: Norm = 'none',
    distance: Distance = 'squared',
    reduction: Reduction = 'mean',
    pooled: Sequence[int] = (),
    eps: float = 0.0,
    unbiased: bool = True,
) -> Tensor:
    r"""Compare two maps position by position, each normalised alone.

    $$
    \frac{1}{Z} \sum_{n, c, p} \rho\bigl(\nu(s)_{n, c, p} - \nu(t)_{n, c, p}\bigr)
    $$

    | ``norm`` | $\nu$ |
    |-|-|
    | ``none`` | the map itself |
    | ``batch`` | each channel less its mean, over its standard deviation, in the whole batch |
    | ``image`` | each channel of an image likewise, in its own image |
    | ``map`` | an image's whole map over its 2-norm |
    | ``position`` | the vector at each position over its 2-norm |

    | ``distance`` | $\rho(d)$ |
    |-|-|
    | ``l1`` | the absolute value |
    | ``squared`` | $d^2$ |
    | ``half_squared`` | $d^2 / 2$ |
    | ``smooth_l1`` | $d^2 / 2$ below 1, the absolute value less 1/2 above |

    | ``reduction`` | Z |
    |-|-|
    | ``mean`` | N C H W |
    | ``position`` | N H W: a sum over channels |
    | ``image`` | N: a sum over maps |
    | ``root`` | N, and of the whole the square root: it takes ``squared`` alone |

    The batch of ``batch`` and ``root`` is that of all processes. With ``norm='position'``,
    ``'half_squared'`` and ``'position'`` it is 1 less the mean cosine.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        norm: See the table.
        distance: See the table.
        reduction: See the table.
        pooled: Sides of square grids, as ``(4, 2, 1)``: the maps are compared as means over such
            grids, too. These weigh 1/2, 1/4, ... of the maps themselves, in the order given, and
            the sum is divided by that of the weights. A side that is not below H is passed over,
            and takes no weight.
        eps: Added to the standard deviations of ``batch`` and ``image``. Without it a channel
            that is constant has no distance from 0.
        unbiased: Whether their variance is that with n - 1 in the place of n.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Examples:
        >>> student = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 2, 1, 1)
        >>> teacher = torch.tensor([[4.0, 3.0], [0.0, 9.0]]).view(2, 2, 1, 1)
        >>> mimic_loss(student, teacher)
        tensor(12.7500)
        >>> mimic_loss(student, teacher, 'position', 'half_squared', 'position')
        tensor(0.0200)
    """
    _check('mimic_loss', norm, distance, reduction, pooled, eps)
    return _over_maps([student], [teacher], norm, distance, reduction, pooled, eps, unbiased)


def _over_maps(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    norm: Norm,
    distance: Distance,
    reduction: Reduction,
    pooled: Sequence[int],
    eps: float,
    unbiased: bool,
) -> Tensor:
    """The sum of [`mimic_loss`][] over maps."""
    if distance == 'half_squared':  # halved once, not map by map
        return (
            _over_maps(students, teachers, norm, 'squared', reduction, pooled, eps, unbiased) / 2
        )
    for maps in zip(students, teachers, strict=True):
        check_same_shape('mimic_loss', *maps)
    with without_autocast(students[0]):
        dims = STATISTICS.get(norm)
        if dims:
            ours, theirs = standardised_together(students, teachers, dims, eps, unbiased)
        else:
            ours = [normed(x, norm, eps, unbiased) for x in students]
            theirs = [normed(x.detach(), norm, eps, unbiased) for x in teachers]
        both = zip(ours, theirs, strict=True)
        return total([_with_grids(*maps, distance, reduction, pooled) for maps in both])


def _with_grids(
    ours: Tensor, theirs: Tensor, distance: Distance, reduction: Reduction, pooled: Sequence[int]
) -> Tensor:
    """The distance of two normed maps, and of their means over grids."""
    images, channels, *lengths = ours.shape
    sides = [side for side in pooled if side < lengths[0]]
    if not sides:
        return _apart(ours, theirs, distance, reduction)
    whole = 2 - 0.5 ** len(sides)
    shares = [0.5**index / whole for index in range(1, len(sides) + 1)]
    if reduction == 'root':
        factors = [share**2 for share in shares]
    else:
        counts = (_count((images, channels, side, side), reduction) for side in sides)
        factors = [share / count for share, count in zip(shares, counts, strict=True)]
    rows, columns, weights = _grids(ours, sides, factors)
    means = (rows @ x.to(ours.dtype) @ columns.mT for x in (ours, theirs))
    apart = DISTANCES[distance](*means, reduction='none').sum((0, 1))
    if reduction == 'root':
        totals = torch.stack([x.sum() for x in (apart * weights).split(sides)])
        coarse = root_over_ranks(totals, images).sum()
    else:
        coarse = torch.dot(apart.flatten(), weights.flatten())
    return torch.add(coarse, _apart(ours, theirs, distance, reduction), alpha=1 / whole)


def normed(x: Tensor, norm: Norm, eps: float, unbiased: bool) -> Tensor:
    """A map as [`mimic_loss`][] compares it, in at least float32."""
    if norm in STATISTICS:
        return standardised(x, STATISTICS[norm], eps, unbiased)
    x = at_least_float32(x)
    return x if norm == 'none' else unit(x, (1, 2, 3) if norm == 'map' else 1)


def _half_squared(ours: Tensor, theirs: Tensor, reduction: str = 'mean') -> Tensor:
    return F.mse_loss(ours, theirs, reduction=reduction) / 2


DISTANCES: dict[str, Callable[..., Tensor]] = {
    'l1': F.l1_loss,
    'squared': F.mse_loss,
    'half_squared': _half_squared,
    'smooth_l1': F.smooth_l1_loss,
}


def _apart(ours: Tensor, theirs: Tensor, distance: Distance, reduction: Reduction) -> Tensor:
    apart, theirs = DISTANCES[distance], theirs.to(ours.dtype)
    if reduction == 'mean' and distance != 'l1':  # whose mean has a gradient in more steps
        return apart(ours, theirs)
    total = apart(ours, theirs, reduction='sum')
    if reduction == 'root':
        return root_over_ranks(total[None], len(ours))[0]
    return total / _count(ours.shape, reduction)


def _count(shape: Sequence[int], reduction: Reduction) -> int:
    """What a sum over maps of this shape is divided by."""
    images, channels, height, width = shape
    counts = dict(mean=channels * height * width, position=height * width, image=1)
    return images * counts[reduction]


def root_over_ranks(totals: Tensor, images: int, published_batch: int = 1) -> Tensor:
    """Root of sums over images, ``(n,)``, in the mean over those of all processes.

    ``published_batch`` images of it are summed. A sum that is 0 has the gradient 0.
    """
    over_ranks = sum_over_ranks(torch.cat([totals, totals.new_full((1,), images)]))
    mean = over_ranks[:-1] * (published_batch / over_ranks[-1])
    return mean / torch.where(mean > 0, mean, 1).sqrt()


def _grids(x: Tensor, sides: Sequence[int], factors: Sequence[float]) -> list[Tensor]:
    """What makes a map ``(..., H, W)`` into means over the cells of square grids.

    That is what adaptive average pooling gives, whose gradient is not deterministic on a GPU.

    Args:
        x: The map.
        sides: Of each grid. Its cells may overlap.
        factors: On each grid.

    Returns:
        A matrix to multiply with from the left ``(S, H)``, one whose transpose comes from the
        right ``(S, W)``, and the factors ``(S, S)`` of what comes out: the grids lie on the
        diagonal, and 0 elsewhere.
    """
    known = [torch.cat([_cells(length, side) for side in sides]) for length in x.shape[-2:]]
    blocks = (
        torch.full((side, side), factor, dtype=torch.double)
        for side, factor in zip(sides, factors, strict=True)
    )
    known.append(torch.block_diag(*blocks))
    # A copy that does not make the host wait for the device.
    row = torch.cat([one.flatten() for one in known]).to(x.device, x.dtype, non_blocking=True)
    parts = row.split([one.numel() for one in known])
    return [part.view_as(one) for part, one in zip(parts, known, strict=True)]


def _cells(length: int, cells: int) -> Tensor:
    """What each of ``length`` places adds to the mean of each cell, ``(cells, length)``."""
    place, cell = (torch.arange(n) for n in (length, cells))
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = (place >= first[:, None]) & (place < end[:, None])
    return inside.double() / (end - first)[:, None]


def _check(
    owner: str, norm: str, distance: str, reduction: str, pooled: Sequence[int], eps: float
) -> None:
    check_choice(owner, 'norm', norm, Norm)
    check_choice(owner, 'distance', distance, Distance)
    check_choice(owner, 'reduction', reduction, Reduction)
    if reduction == 'root' and distance != 'squared':
        raise ValueError(
            f"{owner} with reduction='root' is a 2-norm: expected distance='squared', "
            f'got {distance!r}'
        )
    if not isinstance(pooled, Sequence) or not all(type(x) is int and x >= 1 for x in pooled):
        raise ValueError(f'{owner} expects pooled as sides >= 1, as (4, 2, 1), got {pooled!r}')
    if not 0 <= eps < float('inf'):
        raise ValueError(f'{owner} expects a finite eps >= 0, got eps={eps!r}')


class MimicLoss(DistillLoss):
    """Module form of [`mimic_loss`][], times ``weight``: any comparison of its table.

    Those of published methods have names of their own, as
    [`PKDLoss`][kd_dense.losses.features.mimic.members.PKDLoss].

    Args:
        weight: Factor on the result.
        norm: See [`mimic_loss`][], as the other arguments.

    Examples:
        >>> loss = MimicLoss(norm='image', distance='l1')
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 16, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        norm: Norm = 'none',
        distance: Distance = 'squared',
        reduction: Reduction = 'mean',
        pooled: Sequence[int] = (),
        eps: float = 0.0,
        unbiased: bool = True,
    ) -> None:
        super().__init__(weight)
        _check(type(self).__name__, norm, distance, reduction, pooled, eps)
        self.norm: Norm = norm
        self.distance: Distance = distance
        self.reduction: Reduction = reduction
        self.pooled = tuple(pooled)
        self.eps = eps
        self.unbiased = unbiased

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        found: Tensor = self.over_maps([self], [student], [teacher])
        return found

    @classmethod
    def over_maps(
        cls,
        losses: Sequence[MimicLoss],
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        **needs: Any,
    ) -> Tensor:
        loss = losses[0]
        return loss.weight * _over_maps(
            students,
            teachers,
            loss.norm,
            loss.distance,
            loss.reduction,
            loss.pooled,
            loss.eps,
            loss.unbiased,
        )
