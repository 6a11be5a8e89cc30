"""Neuron selectivity transfer (NST): channels as samples of one distribution.

Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
https://arxiv.org/abs/1707.01219

It equals RepDistiller (BSD-2-Clause).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_dense.functional import unit, without_autocast
from kd_dense.losses.base import DistillLoss, check_counts, check_same_size
from kd_dense.losses.features.relations.rows import pooled, products, sum_over_rows

__all__ = ['NSTLoss', 'nst_loss']


def nst_loss(student: Tensor, teacher: Tensor, pool: int = 1) -> Tensor:
    r"""Compare the channels of student and teacher as two sets, none paired with another.

    With the channels of an image, each over its 2-norm, the squared maximum mean discrepancy of
    the two sets is

    $$
    \frac{1}{C^2} \sum_{c, c'} (s_c^\top s_{c'})^2
    + \frac{1}{C'^2} \sum_{c, c'} (t_c^\top t_{c'})^2
    - \frac{2}{C C'} \sum_{c, c'} (s_c^\top t_{c'})^2
    $$

    in the mean over images.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features, ``(N, C', H, W)``. No gradient flows into it.
        pool: Side of squares that the maps are averaged over first.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes do not fit, or ``pool`` is no side.

    Examples:
        >>> import torch
        >>> channels = torch.eye(2).view(1, 2, 1, 2)
        >>> nst_loss(channels, channels.flip(1))
        tensor(0.)
        >>> nst_loss(channels[:, :1], channels)
        tensor(0.5000)
    """
    check_same_size('nst_loss', student, teacher)
    check_counts('nst_loss', pool=pool)
    with without_autocast(student):
        ours, theirs = (unit(pooled(x, pool).flatten(2)) for x in (student, teacher.detach()))
        theirs = theirs.to(ours.dtype)

        def own(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
            return _alike(rows[0], columns[0])

        def both(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
            among = _alike(rows[0], columns[0])
            return among - 2 * _alike(rows[0], columns[1]) * (ours.shape[1] / theirs.shape[1])

        value = sum_over_rows(both, [ours], [ours, theirs]) / ours.shape[1] ** 2
        return (sum_over_rows(own, [theirs], [theirs]) / theirs.shape[1] ** 2 + value).mean()


def _alike(rows: Tensor, columns: Tensor) -> Tensor:
    """Squared cosines of all pairs of channels ``(G, m, P)`` and ``(G, n, P)``, added up."""
    return products(rows, columns).square().sum((1, 2))


class NSTLoss(DistillLoss):
    """Module form of [`nst_loss`][], times ``weight``.

    The weight of RepDistiller is 50, on each of three maps.

    Args:
        weight: Factor on the result.
        pool: See [`nst_loss`][].

    Examples:
        >>> import torch
        >>> loss = NSTLoss(weight=50.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(self, weight: float = 1.0, pool: int = 1) -> None:
        super().__init__(weight)
        check_counts('NSTLoss', pool=pool)
        self.pool = pool

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * nst_loss(student, teacher, self.pool)
