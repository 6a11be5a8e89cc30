"""Normalised knowledge distillation (NKD): the label as trusted, and the other classes.

Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
Normalized Loss and Customized Soft Labels", ICCV 2023, https://arxiv.org/abs/2303.13005.

Source: yzd-v/cls_KD (Apache-2.0).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import NO_LOGIT, at_least_float32, check_temperature
from kd_dense.losses.base import DistillLoss, check_weights
from kd_dense.losses.logits.rows import (
    Rows,
    check_softmax,
    cross_entropy_at,
    labels_of,
    mean_of_valid,
    rows_of,
)

__all__ = ['NKDLoss', 'nkd_loss']


def nkd_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
    standardise: bool = False,
    sigmoid: bool | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Weigh the label by the teacher's trust in it, and match the other classes.

    With the distributions $p$ of the teacher and $q$ of the student, at temperature 1 for the
    true class y and at T for the others among themselves, the mean over the positions with a
    label of

    $$
    - p_y \log q_y - \gamma T^2 \sum_{i \ne y} p_{i | \setminus y} \log q_{i | \setminus y}
    $$

    These are cross-entropies, as the authors have them, so that the value is not 0 where the two
    agree. Its first part alone is smallest where the student is sure of the label.

    Args:
        student: Logits, ``(N, K, H, W)``, or ``(R, K)`` as of regions, any float dtype. One
            channel is the logit $z$ of a class against none, which is $(0, z)$.
        teacher: Same shape. No gradient flows into it.
        segmentation: Class of every pixel, ``(N, H', W')``, of any resolution, or ``(R,)``.
            Positions without a class are left out.
        gamma: $\gamma$.
        temperature: $T > 0$, higher is softer.
        standardise: See [`kd_loss`][].
        sigmoid: Must not be true: there is no other class to a sigmoid.
        ignore_index: A label that is no class.

    Returns:
        Scalar, at least float32, in nats; 0 where no position has a label.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 3.0]])
        >>> nkd_loss(student, teacher, torch.tensor([2]))
        tensor(1.9667)
    """
    check_temperature(temperature)
    check_softmax('nkd_loss', sigmoid)
    rows = rows_of('nkd_loss', student, teacher, standardise)
    labels, valid = labels_of('nkd_loss', segmentation, rows, ignore_index)
    return mean_of_valid(nkd_at(rows, labels, gamma, temperature), valid)


def nkd_at(rows: Rows, labels: Tensor, gamma: float, temperature: float) -> Tensor:
    """What [`nkd_loss`][] is a mean of, ``(N, H, W)``."""
    student, teacher = (at_least_float32(x) for x in rows)
    ours, theirs = (F.cross_entropy(x, labels, reduction='none') for x in (student, teacher))
    student, teacher = (x.scatter(1, labels[:, None], NO_LOGIT) for x in (student, teacher))
    return (-theirs).exp() * ours + gamma * cross_entropy_at(student, teacher, temperature)


class NKDLoss(DistillLoss):
    """Module form of [`nkd_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        gamma: See [`nkd_loss`][], as the other arguments.

    Examples:
        >>> import torch
        >>> loss = NKDLoss(weight=0.5)
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
        gamma: float = 1.5,
        temperature: float = 1.0,
        standardise: bool = False,
        sigmoid: bool | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        check_weights('NKDLoss', gamma=gamma)
        check_temperature(temperature)
        check_softmax('NKDLoss', sigmoid)
        self.gamma = gamma
        self.temperature = temperature
        self.standardise = standardise
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * nkd_loss(
            student,
            teacher,
            segmentation,
            self.gamma,
            self.temperature,
            self.standardise,
            ignore_index=self.ignore_index,
        )
