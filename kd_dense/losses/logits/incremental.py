"""Old classes for a student that has more of them than its teacher.

LwF: Li and Hoiem, "Learning without Forgetting", ECCV 2016, https://arxiv.org/abs/1606.09282.

MiB: Cermelli et al., "Modeling the Background for Incremental Learning in Semantic
Segmentation", CVPR 2020, https://arxiv.org/abs/2002.00718.

Source of both: fcdl94/MiB (MIT). The teacher's classes are the student's first ones, and class 0
is the background.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, labels_at, two_class_logits
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.logits.rows import (
    check_softmax,
    cross_entropy_at,
    mean_of_valid,
    rows_of,
)

__all__ = [
    'LwFLoss',
    'UnbiasedKDLoss',
    'lwf_loss',
    'unbiased_cross_entropy',
    'unbiased_kd_loss',
]


def lwf_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    standardise: bool = False,
    sigmoid: bool | None = None,
) -> Tensor:
    r"""Match the distribution over the teacher's classes, as if the student had no others.

    The mean over the positions of

    $$
    - \frac{1}{K} \sum_{c < K} \sigma(\alpha t)_c \, \log\, \sigma(s_{< K})_c
    $$

    with the K classes of the teacher. It is a cross-entropy, and divided by K, as published.

    Args:
        student: Logits, ``(N, K + new, H, W)``, or ``(R, K + new)``, any float dtype.
        teacher: Logits, ``(N, K, H, W)``, or ``(R, K)``; a single channel is the logit of a
            class against the background. No gradient flows into it.
        mask: Factor on each position, ``(N, H, W)``; the mean is over all positions.
        alpha: Factor on the teacher's logits, and not on the student's: ``> 0``, above 1 makes
            the target sharper.
        standardise: Whether the logits of the K classes lose their mean at each position and
            are divided by their standard deviation first.
        sigmoid: Must not be true: there is no other class to a sigmoid.

    Returns:
        Scalar, at least float32, in nats.

    Raises:
        ValueError: If the student has fewer classes, shapes differ in anything else, or an
            argument is out of range.

    Examples:
        >>> student = torch.tensor([[0.0, 0.0, 9.0]])
        >>> lwf_loss(student, torch.tensor([[0.0, 0.0]]))
        tensor(0.3466)
    """
    _check_classes('lwf_loss', student, teacher)
    teacher = two_class_logits(teacher)
    old = first_classes(student, teacher.shape[1])
    return _cross_entropy('lwf_loss', old, teacher, mask, alpha, standardise, sigmoid)


def unbiased_kd_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    standardise: bool = False,
    sigmoid: bool | None = None,
) -> Tensor:
    r"""Match the distribution over the teacher's classes, of which one holds all new ones.

    To the teacher whatever it does not know is background, new classes included. So its
    background is compared with the student's probability of background or any new class:

    $$
    - \frac{1}{K} \Bigl[ \sigma(\alpha t)_0 \log \Bigl(q_0 + \sum_{c \ge K} q_c\Bigr)
    + \sum_{1 \le c < K} \sigma(\alpha t)_c \log q_c \Bigr], \qquad q = \sigma(s)
    $$

    as a mean over the positions, with the K classes of the teacher. Without new classes it is
    [`lwf_loss`][].

    Args:
        student: Logits, ``(N, K + new, H, W)``, or ``(R, K + new)``, any float dtype; class 0 is
            the background.
        teacher: See [`lwf_loss`][], as the other arguments.

    Returns:
        Scalar, at least float32, in nats.

    Raises:
        ValueError: If the student has fewer classes, shapes differ in anything else, or an
            argument is out of range.

    Examples:
        >>> student = torch.tensor([[-9.0, 0.0, 0.0]])
        >>> unbiased_kd_loss(student, torch.tensor([[0.0, 0.0]])).round(decimals=4)
        tensor(0.3466)
    """
    _check_classes('unbiased_kd_loss', student, teacher)
    teacher = two_class_logits(teacher)
    old = known_classes(student, teacher.shape[1])
    return _cross_entropy('unbiased_kd_loss', old, teacher, mask, alpha, standardise, sigmoid)


def first_classes(student: Tensor, count: int) -> Tensor:
    """The logits of the teacher's classes."""
    return two_class_logits(student)[:, :count]


def known_classes(student: Tensor, count: int) -> Tensor:
    """The logits of the teacher's classes, of which the background holds all new ones."""
    student = two_class_logits(at_least_float32(student))
    background = torch.cat([student[:, :1], student[:, count:]], 1).logsumexp(1, keepdim=True)
    return torch.cat([background, student[:, 1:count]], 1)


def unbiased_cross_entropy(
    student: Tensor, segmentation: Tensor, old_classes: int, ignore_index: int = 255
) -> Tensor:
    r"""Learn new classes from labels that call all old ones background.

    The student's own loss in MiB, which no teacher takes part in, and which therefore is for its
    head: the probability of the label 0 is that of the background or any old class,
    $\sum_{c < K} \sigma(s)_c$.

    Args:
        student: Logits, ``(N, K + new, H, W)``, of the size of the labels.
        segmentation: Class of every pixel, ``(N, H, W)``, integers. Labels of old classes count
            as background.
        old_classes: K, with the background.
        ignore_index: A label that is no class.

    Returns:
        The mean over the pixels with a label, at least float32, in nats; 0 where there is none.

    Raises:
        ValueError: If the sizes differ, or there are not as many classes.

    Examples:
        >>> logits = torch.tensor([0.0, 0.0, 9.0]).view(1, 3, 1, 1)
        >>> background, new = (torch.full((1, 1, 1), label) for label in (0, 2))
        >>> unbiased_cross_entropy(logits, background, old_classes=2).round(decimals=3)
        tensor(8.3070)
        >>> unbiased_cross_entropy(logits, new, old_classes=2).round(decimals=3)
        tensor(0.)
    """
    classes, size = student.shape[1], student.shape[2:]
    if student.dim() != 4 or segmentation.shape != (len(student), *size):
        raise ValueError(
            'unbiased_cross_entropy expects logits (N, K, H, W) and labels (N, H, W), got '
            f'{tuple(student.shape)} and {tuple(segmentation.shape)}: enlarge the logits first'
        )
    if not 1 <= old_classes <= classes:
        raise ValueError(
            f'unbiased_cross_entropy expects 1 <= old_classes <= {classes}, the classes of the '
            f'logits, got old_classes={old_classes}'
        )
    labels, valid = labels_at(segmentation, size, classes, ignore_index)
    student = at_least_float32(student)
    background = student[:, :old_classes].logsumexp(1, keepdim=True)
    logits = torch.cat([background, student[:, old_classes:]], 1)
    labels = (labels - (old_classes - 1)).clamp(min=0)
    return mean_of_valid(F.cross_entropy(logits, labels, reduction='none'), valid)


def _check_classes(owner: str, student: Tensor, teacher: Tensor) -> None:
    same = student.dim() == teacher.dim() and student.dim() in (2, 4)
    if not (
        same
        and len(student) == len(teacher)
        and student.shape[2:] == teacher.shape[2:]
        and student.shape[1] >= teacher.shape[1]
    ):
        raise ValueError(
            f'{owner} expects logits (N, K, H, W) or (R, K) of one size, and a student with the '
            f'classes of its teacher and more, got student {tuple(student.shape)} and teacher '
            f'{tuple(teacher.shape)}'
        )


def _cross_entropy(
    owner: str,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    alpha: float,
    standardise: bool,
    sigmoid: bool | None,
) -> Tensor:
    """Of logits of the teacher's classes: a mean over positions and classes."""
    if not alpha > 0:
        raise ValueError(f'{owner} expects alpha > 0, got alpha={alpha!r}')
    check_softmax(owner, sigmoid)
    rows = rows_of(owner, student, teacher, standardise)
    target = at_least_float32(rows.teacher) * alpha
    values = cross_entropy_at(rows.student, target)
    if mask is not None:
        values = values * mask.view_as(values)
    return values.mean() / target.shape[1]


class _OldClassesLoss(DistillLoss):
    """What the two modules have in common."""

    any_channels = True
    extra_classes = True

    def __init__(
        self,
        weight: float = 1.0,
        alpha: float = 1.0,
        standardise: bool = False,
        sigmoid: bool | None = None,
    ) -> None:
        super().__init__(weight)
        if not alpha > 0:
            raise ValueError(f'{type(self).__name__} expects alpha > 0, got alpha={alpha!r}')
        check_softmax(type(self).__name__, sigmoid)
        self.alpha = alpha
        self.standardise = standardise


class LwFLoss(_OldClassesLoss):
    """Module form of [`lwf_loss`][], times ``weight``.

    MiB's comparison has it with weight 100.

    Args:
        weight: Factor on the result.
        alpha: See [`lwf_loss`][], as the other arguments.

    Examples:
        >>> loss = LwFLoss(weight=100.0)
        >>> student = torch.randn(2, 21, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 16, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 21, 8, 8])
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * lwf_loss(
            student, teacher, alpha=self.alpha, standardise=self.standardise
        )


class UnbiasedKDLoss(_OldClassesLoss):
    """Module form of [`unbiased_kd_loss`][], times ``weight``.

    The authors' weight is 10, and 100 where classes come one by one (their 15-1). Their student
    learns the labels with [`unbiased_cross_entropy`][].

    Args:
        weight: Factor on the result.
        alpha: See [`lwf_loss`][], as the other arguments.

    Examples:
        >>> loss = UnbiasedKDLoss(weight=10.0)
        >>> student = torch.randn(2, 21, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 16, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 21, 8, 8])
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * unbiased_kd_loss(
            student, teacher, alpha=self.alpha, standardise=self.standardise
        )
