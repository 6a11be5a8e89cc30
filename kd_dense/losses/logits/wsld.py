"""Weighted soft labels (WSLD): the teacher counts more where it beats the student.

Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
Perspective", ICLR 2021, https://arxiv.org/abs/2102.00650.

Source: open-mmlab/mmrazor (Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, check_temperature
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.logits.rows import (
    Rows,
    check_softmax,
    cross_entropy_at,
    labels_of,
    mean_of_valid,
    rows_of,
)

__all__ = ['WSLDLoss', 'wsld_loss']

EPS = 1e-7


def wsld_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    temperature: float = 2.0,
    standardise: bool = False,
    sigmoid: bool | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Match distributions, with a weight for how much better the teacher knows the label.

    With the cross-entropies $c_s$ and $c_t$ of the label under student and teacher, without
    temperature, the mean over the positions with a label of

    $$
    - w \, T^2 \sum_i \sigma(t / T)_i \log\, \sigma(s / T)_i, \qquad
    w = 1 - \exp\Bigl(-\frac{c_s}{c_t + \epsilon}\Bigr), \quad \epsilon = 10^{-7}
    $$

    No gradient flows through $w$, which is near 1 where the teacher is right and the student
    is not, and near 0 the other way round. This is a cross-entropy, as published, so that the
    value is not 0 where the two agree.

    Args:
        student: Logits, ``(N, K, H, W)``, or ``(R, K)`` as of regions, any float dtype. One
            channel is the logit $z$ of a class against none, which is $(0, z)$.
        teacher: Same shape. No gradient flows into it.
        segmentation: Class of every pixel, ``(N, H', W')``, of any resolution, or ``(R,)``.
            Positions without a class are left out.
        temperature: $T > 0$, higher is softer.
        standardise: See [`kd_loss`][].
        sigmoid: Must not be true: there is no other class to a sigmoid.
        ignore_index: A label that is no class.

    Returns:
        Scalar, at least float32, in nats; 0 where no position has a label.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Examples:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 3.0]])
        >>> right, wrong = torch.tensor([2]), torch.tensor([0])
        >>> wsld_loss(student, teacher, right) > wsld_loss(student, teacher, wrong)
        tensor(True)
    """
    check_temperature(temperature)
    check_softmax('wsld_loss', sigmoid)
    rows = rows_of('wsld_loss', student, teacher, standardise)
    labels, valid = labels_of('wsld_loss', segmentation, rows, ignore_index)
    return mean_of_valid(wsld_at(rows, labels, temperature), valid)


def wsld_at(rows: Rows, labels: Tensor, temperature: float) -> Tensor:
    """What [`wsld_loss`][] is a mean of, ``(N, H, W)``."""
    with torch.no_grad():
        ours, theirs = (
            F.cross_entropy(at_least_float32(x), labels, reduction='none') for x in rows
        )
        weight = -torch.expm1(-ours / (theirs + EPS))
    return weight * cross_entropy_at(*rows, temperature)


class WSLDLoss(DistillLoss):
    """Module form of [`wsld_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        temperature: See [`wsld_loss`][], as the other arguments.

    Examples:
        >>> loss = WSLDLoss(weight=2.5)
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> segmentation = torch.randint(19, (2, 64, 64))
        >>> loss(student, torch.randn(2, 19, 8, 8), segmentation=segmentation).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    needs = ('segmentation',)

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.0,
        standardise: bool = False,
        sigmoid: bool | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_softmax('WSLDLoss', sigmoid)
        self.temperature = temperature
        self.standardise = standardise
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * wsld_loss(
            student,
            teacher,
            segmentation,
            self.temperature,
            self.standardise,
            ignore_index=self.ignore_index,
        )
