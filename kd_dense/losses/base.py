"""What every distillation loss has in common."""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ['DistillLoss', 'check_same_shape']


class DistillLoss(nn.Module):
    """Base of all distillation losses: a weight and a promise.

    A loss takes ``(student, teacher)`` maps and returns a scalar tensor, at least float32.
    It detaches the teacher itself.

    Args:
        weight: Factor on the result, ``>= 0``. At 0 the term is switched off.

    Raises:
        ValueError: If ``weight`` is negative or not finite.

    Example:
        >>> DistillLoss(weight=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: DistillLoss expects a finite weight >= 0, got weight=-1.0
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(
                f'{type(self).__name__} expects a finite weight >= 0, got weight={weight}'
            )
        self.weight = weight


def check_same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    """Raise ``ValueError`` unless the two maps have one shape ``(N, C, H, W)``."""
    if student.shape != teacher.shape or student.dim() != 4:
        raise ValueError(
            f'{name} expects two maps of one shape (N, C, H, W), got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; '
            'kd_dense.adapters.Adapter gives a student map the shape of the teacher map'
        )
