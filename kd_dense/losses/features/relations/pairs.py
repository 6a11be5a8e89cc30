"""What each position of an image is like in every other one: the mini-batch part of CIRKD.

Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022.
https://arxiv.org/abs/2204.06986

The authors' code has no licence: the formula alone was taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_dense.functional import (
    check_temperature,
    gather_over_ranks,
    soft_kl,
    unit,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_counts, check_same_size
from kd_dense.losses.features.relations.rows import pooled, sum_over_rows

__all__ = ['CrossImageLoss', 'cross_image_loss']


def cross_image_loss(
    student: Tensor, teacher: Tensor, temperature: float = 0.1, pool: int = 1
) -> Tensor:
    r"""Compare where in each image of the batch a position finds its like.

    With the features $f$ of length 1 at position p of image i and q of image j, P positions and
    B images of all processes together,

    $$
    \frac{1}{B^2 P} \sum_{i, j} \sum_p
        \mathrm{KL}\bigl(\pi^t_{ij}(p) \,\Vert\, \pi^s_{ij}(p)\bigr), \qquad
    \pi_{ij}(p) = \mathrm{softmax}_q \frac{f_{i, p}^\top f_{j, q}}{\tau}
    $$

    It compares all pairs of positions, a few thousand rows at a time: the work grows with the
    square of their number, the memory with it.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype, as many images in all processes.
        teacher: Same N, H and W. No gradient flows into it.
        temperature: $\tau > 0$.
        pool: Side of squares that the maps are averaged over first. The authors have 4 where both
            sides are 256 or more, else 1.

    Returns:
        Scalar, at least float32, in nats.

    Raises:
        ValueError: If the shapes do not fit, or an argument is out of range.

    Examples:
        >>> import torch
        >>> maps = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
        >>> cross_image_loss(maps, maps)
        tensor(0.)
        >>> cross_image_loss(maps.sum(1, keepdim=True), maps, temperature=1.0).round(decimals=4)
        tensor(0.1109)
    """
    check_same_size('cross_image_loss', student, teacher)
    check_temperature(temperature)
    check_counts('cross_image_loss', pool=pool)
    with without_autocast(student):
        ours, theirs = (_positions(x, pool) for x in (student, teacher.detach()))
        theirs = theirs.to(ours.dtype)
        size = ours.shape[1]
        everywhere = [gather_over_ranks(x).flatten(0, 1)[None] for x in (ours, theirs)]

        def apart(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
            s, t = (
                (x @ y.mT).unflatten(2, (-1, size)) for x, y in zip(rows, columns, strict=True)
            )
            return soft_kl(s, t, 1.0, dim=3).sum((1, 2))

        rows = [x.flatten(0, 1)[None] / temperature for x in (ours, theirs)]
        pairs = rows[0].shape[1] * (everywhere[0].shape[1] // size)
        return sum_over_rows(apart, rows, everywhere)[0] / pairs


def _positions(x: Tensor, pool: int) -> Tensor:
    return unit(pooled(x, pool), 1).flatten(2).mT


class CrossImageLoss(DistillLoss):
    """Module form of [`cross_image_loss`][], times ``weight``.

    The authors' weight is 1.

    Args:
        weight: Factor on the result.
        temperature: See [`cross_image_loss`][], as ``pool``.

    Examples:
        >>> import torch
        >>> loss = CrossImageLoss()
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(self, weight: float = 1.0, temperature: float = 0.1, pool: int = 1) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_counts('CrossImageLoss', pool=pool)
        self.temperature = temperature
        self.pool = pool

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * cross_image_loss(student, teacher, self.temperature, self.pool)
