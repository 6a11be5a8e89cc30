"""Decoupled logits: the true class, or the likeliest ones, and the rest, each by itself.

DKD: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, https://arxiv.org/abs/2203.08679.
Source: megvii-research/mdistiller (MIT); on maps ZaberKo/seg-gdkd (Apache-2.0).

GDKD: Zheng and Cheng, "Rethinking Decoupled Knowledge Distillation: A Predictive Distribution
Perspective", 2025, https://arxiv.org/abs/2512.04625. Source: ZaberKo/seg-gdkd (Apache-2.0).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_dense.functional import check_choice, check_temperature
from kd_dense.losses.base import DistillLoss, check_counts, check_weights
from kd_dense.losses.logits.groups import group_kl
from kd_dense.losses.logits.rows import (
    Rows,
    check_softmax,
    labels_of,
    mean_of_valid,
    rows_of,
)

__all__ = ['DKDLoss', 'GDKDLoss', 'dkd_loss', 'gdkd_loss']

Reduction = Literal['mean', 'sum']


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
    reduction: Reduction = 'mean',
    standardise: bool = False,
    sigmoid: bool | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Match how likely the true class is, and how the other classes share the rest.

    With the distributions $p$ of the teacher and $q$ of the student at temperature T, the true
    class y of a position, and $p_{\setminus y}$, that of the other classes among themselves, the
    mean over the positions with a label of

    $$
    T^2 \bigl[ \alpha \, \mathrm{KL}\bigl((p_y, 1 - p_y) \,\|\, (q_y, 1 - q_y)\bigr)
    + \beta \, \mathrm{KL}(p_{\setminus y} \,\|\, q_{\setminus y}) \bigr]
    $$

    Distillation as in [`kd_loss`][] is $\alpha = 1$ and $\beta = 1 - p_y$, which says little
    of the other classes where the teacher is sure.

    Published code subtracts 1000 from the logit of the true class, and adds an epsilon, clamps or
    overflows where $1 - p_y$ is 0; this is exact instead, and equal elsewhere.

    Args:
        student: Logits, ``(N, K, H, W)``, or ``(R, K)`` as of regions, any float dtype. One
            channel is the logit $z$ of a class against none, which is $(0, z)$.
        teacher: Same shape. No gradient flows into it.
        segmentation: Class of every pixel, ``(N, H', W')``, of any resolution, or ``(R,)``.
            Positions without a class are left out.
        alpha: $\alpha$.
        beta: $\beta$; 2 is the default of the dense version, and 8 with temperature 4, or 0.25
            on regions, are the authors'.
        temperature: $T > 0$, higher is softer.
        reduction: ``'sum'`` adds up the positions, as mmrazor's DKDLoss does for ``'mean'`` and
            for ``'none'``, because of an argument of PyTorch that outranks the other one.
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
        >>> dkd_loss(student, teacher, torch.tensor([2]), beta=0.0)
        tensor(0.5570)
        >>> dkd_loss(student, teacher, torch.tensor([2]), alpha=0.0, beta=1.0)
        tensor(0.1109)
    """
    check_temperature(temperature)
    check_choice('dkd_loss', 'reduction', reduction, Reduction)
    check_softmax('dkd_loss', sigmoid)
    rows = rows_of('dkd_loss', student, teacher, standardise)
    labels, valid = labels_of('dkd_loss', segmentation, rows, ignore_index)
    kl = dkd_at(rows, labels, alpha, beta, temperature)
    return mean_of_valid(kl, valid) if reduction == 'mean' else kl.where(valid, 0).sum()


def dkd_at(rows: Rows, labels: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """What [`dkd_loss`][] is a mean of, ``(N, H, W)``."""
    return group_kl(rows, labels[:, None], alpha, 0.0, beta, temperature)


def gdkd_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor | None = None,
    between: float = 1.0,
    top: float = 1.0,
    rest: float = 2.0,
    k: int = 3,
    temperature: float = 1.0,
    standardise: bool = False,
    sigmoid: bool | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Match the classes that the teacher finds likeliest, the others, and the two together.

    It is [`dkd_loss`][] without labels: in the place of the true class stand the k largest
    logits of the teacher. The mean over the positions of

    $$
    T^2 \bigl[ w_0 \mathrm{KL}\bigl((p_G, 1 - p_G) \,\|\, (q_G, 1 - q_G)\bigr)
    + w_1 \mathrm{KL}(p_{\cdot | G} \,\|\, q_{\cdot | G})
    + w_2 \mathrm{KL}(p_{\cdot | R} \,\|\, q_{\cdot | R}) \bigr]
    $$

    where G are these k classes and R the others, $p_G$ is the share of all in G, and
    $p_{\cdot | G}$ how they share it among themselves.

    Args:
        student: Logits, ``(N, K, H, W)``, or ``(R, K)`` as of regions, any float dtype. One
            channel is the logit $z$ of a class against none, which is $(0, z)$.
        teacher: Same shape. No gradient flows into it.
        segmentation: Where positions without a class are to be left out: the class of every
            pixel, ``(N, H', W')``, of any resolution, or ``(R,)``.
        between: $w_0$.
        top: $w_1$.
        rest: $w_2$.
        k: How many classes are in G, at least 1 and fewer than there are: with few classes it
            is all but one.
        temperature: $T > 0$, higher is softer.
        standardise: See [`kd_loss`][].
        sigmoid: Must not be true: there is no other class to a sigmoid.
        ignore_index: A label that is no class.

    Returns:
        Scalar, at least float32, in nats.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 3.0]])
        >>> gdkd_loss(student, teacher, k=1)
        tensor(0.7789)
    """
    check_temperature(temperature)
    check_counts('gdkd_loss', k=k)
    check_softmax('gdkd_loss', sigmoid)
    rows = rows_of('gdkd_loss', student, teacher, standardise)
    valid = None
    if segmentation is not None:
        _, valid = labels_of('gdkd_loss', segmentation, rows, ignore_index)
    return mean_of_valid(gdkd_at(rows, between, top, rest, k, temperature), valid)


def gdkd_at(
    rows: Rows, between: float, top: float, rest: float, k: int, temperature: float
) -> Tensor:
    """What [`gdkd_loss`][] is a mean of, ``(N, H, W)``."""
    members = rows.teacher.topk(min(k, rows.teacher.shape[1] - 1), dim=1, sorted=False).indices
    return group_kl(rows, members, between, top, rest, temperature)


class DKDLoss(DistillLoss):
    """Module form of [`dkd_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        alpha: See [`dkd_loss`][], as the other arguments.

    Examples:
        >>> import torch
        >>> loss = DKDLoss(weight=2.0, beta=8.0, temperature=4.0)
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
        alpha: float = 1.0,
        beta: float = 2.0,
        temperature: float = 1.0,
        reduction: Reduction = 'mean',
        standardise: bool = False,
        sigmoid: bool | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        check_weights('DKDLoss', alpha=alpha, beta=beta)
        check_temperature(temperature)
        check_choice('DKDLoss', 'reduction', reduction, Reduction)
        check_softmax('DKDLoss', sigmoid)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.standardise = standardise
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * dkd_loss(
            student,
            teacher,
            segmentation,
            self.alpha,
            self.beta,
            self.temperature,
            self.reduction,
            self.standardise,
            ignore_index=self.ignore_index,
        )


class GDKDLoss(DistillLoss):
    """Module form of [`gdkd_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        between: See [`gdkd_loss`][], as the other arguments.
        valid_only: Whether pixels without a label are left out, which takes label maps.

    Examples:
        >>> import torch
        >>> loss = GDKDLoss(weight=2.0, k=5)
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 19, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        between: float = 1.0,
        top: float = 1.0,
        rest: float = 2.0,
        k: int = 3,
        temperature: float = 1.0,
        standardise: bool = False,
        valid_only: bool = False,
        sigmoid: bool | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        check_weights('GDKDLoss', between=between, top=top, rest=rest)
        check_counts('GDKDLoss', k=k)
        check_temperature(temperature)
        check_softmax('GDKDLoss', sigmoid)
        self.between = between
        self.top = top
        self.rest = rest
        self.k = k
        self.temperature = temperature
        self.standardise = standardise
        self.needs = ('segmentation',) if valid_only else ()
        self.ignore_index = ignore_index

    def forward(
        self, student: Tensor, teacher: Tensor, segmentation: Tensor | None = None
    ) -> Tensor:
        return self.weight * gdkd_loss(
            student,
            teacher,
            segmentation,
            self.between,
            self.top,
            self.rest,
            self.k,
            self.temperature,
            self.standardise,
            ignore_index=self.ignore_index,
        )
