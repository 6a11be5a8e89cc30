"""What every distillation loss has in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    'MMDET_EPS',
    'DistillLoss',
    'check_counts',
    'check_same_shape',
    'check_same_size',
    'check_weights',
]

# What mmdet adds to the divisor of a loss.
MMDET_EPS = torch.finfo(torch.float32).eps


class DistillLoss(nn.Module):
    """Base of all distillation losses: a weight, a promise, and what the loss asks for.

    A loss takes ``(student, teacher)`` maps, and what it ``needs`` by keyword. It returns a
    scalar tensor, at least float32, or a dict with one such scalar for each of its ``parts``.
    It detaches the teacher itself.

    A loss whose constructor takes ``channels`` is given the width of the teacher's map, and one
    that takes ``student_channels`` or ``teacher_channels`` the widths of those maps: a list of
    all where it takes ``all_maps``, otherwise the number of its own. ``num_classes`` and
    ``ignore_index`` are those of the student's head; ``sigmoid`` is whether that head, if the tap
    lies in one, takes each channel for a logit of its own.

    Attributes:
        needs: What else it compares with, as ``'boxes'``; all are listed in
            ``kd_dense/mm/batches/targets.py``.
        parts: The names of its parts in the log; none, if it returns a scalar.
        all_maps: Whether it takes the lists of all maps of a tap, rather than one map a call.
        any_channels: Whether student and teacher maps may differ in width.
        any_size: Whether they may differ in height and width, too.
        extra_classes: Whether the student's logits may have more classes than the teacher's, whose
            classes come first; no adapter is put between them.
        adaptable: Whether an adapter in front of the loss makes sense.
        of_queries: Whether it takes what decoders predict for their queries: class logits
            ``(N, Q, K)`` of each layer, then boxes ``(N, Q, 4)`` or masks ``(N, Q, H, W)`` of
            each, without the queries that a model has in training alone. The numbers of layers and
            of queries may differ, and the loss pairs them itself.
        of_teachers: Whether it takes the maps of several teachers, one behind the other
            ``(K N, C, H, W)``, rather than their mean.
        least_images: How many images a batch of all processes must have for a loss that relates
            them: of fewer it has nothing to say.
        divides_by_images: Whether what it returns is a mean over the images of this process,
            rather than a sum divided by a count of all processes. It matters where some of the
            images have no labels, and the loss needs them.

    Args:
        weight: Factor on the result, ``>= 0``. At 0 the term is switched off.

    Raises:
        ValueError: If ``weight`` is negative or not finite.

    Examples:
        >>> DistillLoss(weight=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: DistillLoss expects a finite weight >= 0, got weight=-1.0
    """

    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    all_maps = False
    any_channels = False
    any_size = False
    extra_classes = False
    adaptable = True
    of_queries = False
    of_teachers = False
    least_images = 1
    divides_by_images = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_weights(type(self).__name__, weight=weight)
        self.weight = weight

    @classmethod
    def over_maps(
        cls,
        losses: Sequence[Any],
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        **needs: Any,
    ) -> Any:
        """What a term makes of the maps of a tap: the sum over them.

        A loss that can take all maps in fewer steps than one by one overrides it.

        Args:
            losses: One for each map, or one for all, of this class.
            students: The maps of the student.
            teachers: Of the teacher, as many.
            needs: What the loss needs beside them.

        Returns:
            What the loss returns for one map: a scalar, or one for each of its ``parts``.

        Examples:
            >>> from kd_dense.losses import CWDLoss
            >>> maps = torch.arange(4.0).view(1, 1, 2, 2)
            >>> CWDLoss.over_maps([CWDLoss(temperature=2.0)], [maps, maps], [maps.flip(-1), maps])
            tensor(0.4898)
        """
        results = [
            loss(student, teacher, **needs)
            for loss, student, teacher in zip(cycle(losses), students, teachers, strict=False)
        ]
        parts = losses[0].parts
        if not parts:
            return total(results)
        return {part: total([result[part] for result in results]) for part in parts}


def total(results: Sequence[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack([*results]).sum() if len(results) > 1 else results[0]


def check_weights(owner: str, **weights: float) -> dict[str, float]:
    """The weights by name; ``ValueError`` unless each of them is finite and not negative."""
    for name, value in weights.items():
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not (real and value >= 0 and math.isfinite(value)):
            raise ValueError(f'{owner} expects a finite {name} >= 0, got {name}={value!r}')
    return weights


def check_counts(owner: str, **counts: Any) -> None:
    """Raise ``ValueError`` unless each of the values is a whole number from 1 on."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f'{owner} expects {name} as an int >= 1, got {name}={value!r}')


def check_same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    """Raise ``ValueError`` unless the two maps have one shape ``(N, C, H, W)``."""
    if student.shape != teacher.shape or student.dim() != 4:
        raise ValueError(
            f'{name} expects two maps of one shape (N, C, H, W), got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; '
            'kd_dense.adapters.Adapter gives a student map the shape of the teacher map'
        )


def check_same_size(name: str, student: Tensor, teacher: Tensor) -> None:
    """Raise ``ValueError`` unless two maps ``(N, C, H, W)`` differ in their channels alone."""
    same = student.dim() == teacher.dim() == 4 and len(student) == len(teacher)
    if not (same and student.shape[2:] == teacher.shape[2:]):
        raise ValueError(
            f'{name} expects two maps (N, C, H, W) that differ in C at most, got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; '
            'kd_dense.adapters.resize gives a student map the size of the teacher map'
        )
