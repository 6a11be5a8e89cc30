"""Confidence-aware distillation from several teachers (CA-MKD), position by position.

Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022,
https://arxiv.org/abs/2201.00007. Its code, Rorozhl/CA-MKD, has no licence; written from the
formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, check_choice, check_temperature
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.logits.kd import kd_at
from kd_dense.losses.logits.rows import Rows, check_softmax, labels_of, mean_of_valid, rows_of

__all__ = ['CAMKDLoss', 'camkd_loss', 'confidence_weights']

Confidence = Literal['position', 'image']


def confidence_weights(cross_entropy: Tensor) -> Tensor:
    r"""Weigh teachers by how well each of them knows the labels.

    With the cross-entropy $c_k$ of teacher k and the label,

    $$
    w_k = \frac{1}{K - 1} \left( 1 - \frac{\exp c_k}{\sum_j \exp c_j} \right)
    $$

    which add up to 1.

    Args:
        cross_entropy: ``(K, ...)``, for at least two teachers.

    Returns:
        Weights of the same shape, without gradient. (The authors' have one, into teachers that
        nobody trains.)

    Raises:
        ValueError: If there is one teacher alone.

    Examples:
        >>> confidence_weights(torch.tensor([0.0, 0.0, 2.0]))
        tensor([0.4467, 0.4467, 0.1065])
    """
    if len(cross_entropy) < 2:
        raise ValueError(
            'confidence_weights expects the cross-entropies of two teachers or more, '
            f'got {len(cross_entropy)}; KDLoss is for one'
        )
    return (1 - cross_entropy.detach().softmax(0)) / (len(cross_entropy) - 1)


def camkd_loss(
    student: Tensor,
    teachers: Sequence[Tensor],
    segmentation: Tensor,
    temperature: float = 4.0,
    confidence: Confidence = 'position',
    per_teacher: bool = False,
    sigmoid: bool | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Match the class distributions of several teachers, the surest of the truth the most.

    With the set V of the positions that have a label, and the weights of [`confidence_weights`][],

    $$
    \frac{T^2}{|V|} \sum_{v \in V} \sum_k
    w_{kv} \, \mathrm{KL}\bigl(\sigma(t_{kv} / T) \,\|\, \sigma(s_v / T)\bigr)
    $$

    The authors classify images; for a map, ``'position'`` is their formula for each of its
    positions.

    Args:
        student: Logits, ``(N, C, H, W)``, or ``(R, C)`` as of regions, any float dtype.
        teachers: Those of at least two teachers, each of the same shape. No gradient flows into
            them.
        segmentation: Class of every pixel, ``(N, H', W')``, of any resolution, or ``(R,)``.
            Positions without a class are left out.
        temperature: $T > 0$, higher is softer.
        confidence: Whether a teacher is weighed at each position, or once for an image, by its
            mean cross-entropy there. (Of regions, all are one image.)
        per_teacher: Whether the result is divided by the number of teachers too, as the authors'
            code does, although the weights add up to 1 already.
        sigmoid: Must not be true: there is no class against the others.
        ignore_index: A label that is no class.

    Returns:
        Scalar, at least float32, in nats; 0 where no position has a label.

    Raises:
        ValueError: If there are fewer than two teachers, shapes differ, or an argument is out of
            range.

    Examples:
        >>> student = torch.zeros(1, 2, 1, 1)
        >>> right, wrong = torch.tensor([[3.0, 0.0], [0.0, 3.0]]).view(2, 1, 2, 1, 1)
        >>> label = torch.zeros(1, 1, 1, dtype=torch.int64)
        >>> camkd_loss(student, [right, wrong], label, temperature=1.0)
        tensor(0.5023)
    """
    check_temperature(temperature)
    check_choice('camkd_loss', 'confidence', confidence, Confidence)
    check_softmax('camkd_loss', sigmoid)
    rows = [rows_of('camkd_loss', student, teacher) for teacher in teachers]
    if len(rows) < 2:
        raise ValueError(
            f'camkd_loss expects two teachers or more, got {len(rows)}; KDLoss is for one'
        )
    labels, valid = labels_of('camkd_loss', segmentation, rows[0], ignore_index)
    total = camkd_at(rows, labels, valid, temperature, confidence)
    return mean_of_valid(total, valid) / (len(rows) if per_teacher else 1)


def camkd_at(
    rows: Sequence[Rows],
    labels: Tensor,
    valid: Tensor,
    temperature: float,
    confidence: Confidence,
) -> Tensor:
    """What [`camkd_loss`][] is a mean of, ``(N, H, W)``."""
    weights = weights_at(rows, labels, valid, confidence)
    each = [w * kd_at(one, temperature) for w, one in zip(weights, rows, strict=True)]
    return torch.stack(each).sum(0)


def weights_at(
    rows: Sequence[Rows], labels: Tensor, valid: Tensor, confidence: Confidence
) -> Tensor:
    """What each teacher counts, ``(K, N, H, W)``, or ``(K, N, 1, 1)`` for whole images."""
    known = torch.stack(
        [F.cross_entropy(at_least_float32(one.teacher), labels, reduction='none') for one in rows]
    )
    if confidence == 'image':
        places = valid.sum((1, 2), keepdim=True).clamp_min(1)
        known = known.where(valid, 0).sum((2, 3), keepdim=True) / places
    return confidence_weights(known)


class CAMKDLoss(DistillLoss):
    """Module form of [`camkd_loss`][], times ``weight``.

    Args:
        weight: Factor on the result. The authors have 1, with ``per_teacher``.
        temperature: See [`camkd_loss`][], as the other arguments.

    Examples:
        >>> loss = CAMKDLoss()
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> teachers = torch.randn(3 * 2, 19, 8, 8)  # of three, all images of the first in front
        >>> loss(student, teachers, segmentation=torch.randint(19, (2, 64, 64))).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    needs = ('segmentation',)
    of_teachers = True

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 4.0,
        confidence: Confidence = 'position',
        per_teacher: bool = False,
        sigmoid: bool | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_choice('CAMKDLoss', 'confidence', confidence, Confidence)
        check_softmax('CAMKDLoss', sigmoid)
        self.temperature = temperature
        self.confidence: Confidence = confidence
        self.per_teacher = per_teacher
        self.sigmoid = sigmoid
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * camkd_loss(
            student,
            teacher.split(max(len(student), 1)),
            segmentation,
            self.temperature,
            self.confidence,
            self.per_teacher,
            self.sigmoid,
            self.ignore_index,
        )
