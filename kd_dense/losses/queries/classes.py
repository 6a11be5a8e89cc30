"""The classes of queries: what pairing them costs, and what is compared of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import check_choice
from kd_dense.losses.base import DistillLoss, check_weights
from kd_dense.losses.queries.matching import take

__all__ = ['QueryLoss', 'Unmatched', 'check_settings', 'class_costs', 'class_losses']

Unmatched = Literal['background', 'ignored', 'code']


def class_costs(student: Tensor, teacher: Tensor, sigmoid: bool) -> Tensor:
    """Cross-entropy of each student query to each query of the teacher, summed over classes.

    Args:
        student: Logits, ``(N, Q, K)``.
        teacher: Logits, ``(N, M, K)``.
        sigmoid: Whether each class is taken for itself.

    Returns:
        ``(N, Q, M)``.

    Examples:
        >>> class_costs(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), sigmoid=False)
        tensor([[[0.6931]]])
    """
    probabilities = _probabilities(teacher, sigmoid)
    if not sigmoid:
        return -student.log_softmax(2) @ probabilities.mT
    return F.softplus(student).sum(2, keepdim=True) - student @ probabilities.mT


def class_losses(
    student: Tensor,
    teacher: Tensor,
    students: Tensor,
    teachers: Tensor,
    unmatched: Unmatched,
    sigmoid: bool,
) -> Tensor:
    """Cross-entropy of paired queries, and of those without a partner.

    Args:
        student: Logits, ``(N, Q, K)``.
        teacher: Logits, of other queries.
        students: The paired queries of the student, ``(N, M)``.
        teachers: Those of the teacher, in the same order.
        unmatched: What the others of the student are taught: see
            [`kd_dense.losses.queries.boxes.query_box_loss`][].
        sigmoid: Whether each class is taken for itself.

    Returns:
        ``(N, Q)``; or ``(N, M)``, where others are ignored.
    """
    taught = take(_probabilities(teacher, sigmoid), teachers)
    if unmatched == 'ignored':
        student = take(student, students)
    else:
        targets = torch.zeros_like(student)
        if unmatched == 'code':
            targets += student.shape[2]
        elif not sigmoid:
            targets[..., -1] = 1
        taught = targets.scatter(1, students[..., None].expand_as(taught), taught.to(targets))
    if not sigmoid:
        return -(taught * student.log_softmax(-1)).sum(-1)
    return F.binary_cross_entropy_with_logits(student, taught, reduction='none').sum(-1)


def _probabilities(logits: Tensor, sigmoid: bool) -> Tensor:
    return logits.sigmoid() if sigmoid else logits.softmax(2)


def check_settings(
    owner: str,
    parts: Sequence[str],
    weights: Sequence[float],
    costs: Sequence[float],
    unmatched: str,
) -> dict[str, float]:
    """Raise ``ValueError`` unless these can be weights and costs; the weights by part."""
    checked = check_weights(owner, **dict(zip(parts, weights, strict=True)))
    if len(costs) != len(parts):
        raise ValueError(f'{owner} expects three costs, of {", ".join(parts)}, got {costs!r}')
    for value in costs:
        check_weights(owner, cost=value)
    check_choice(owner, 'unmatched', unmatched, Unmatched)
    return checked


class QueryLoss(DistillLoss):
    """A loss on the queries of two decoders: a function and its settings.

    Args:
        weight: Factor on all parts.
        costs: Of a pair, one for each part.
        settings: Other arguments of the function.
    """

    of_queries = True
    all_maps = True
    adaptable = False
    function: Callable[..., dict[str, Tensor]]

    def __init__(self, weight: float, costs: Sequence[float], **settings: Any) -> None:
        super().__init__(weight)
        self.settings: dict[str, Any] = dict(settings, costs=tuple(costs))  # of a list in a config

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        found = self.function(student, teacher, **self.settings)
        return {name: self.weight * part for name, part in found.items()}
