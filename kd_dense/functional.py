"""Maths that several losses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ['at_least_float32', 'check_temperature', 'soft_kl']


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged where it is more precise already.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.float16)).dtype
        torch.float32
        >>> at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless ``temperature`` is positive and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f'expected a temperature > 0, got temperature={temperature}')


def soft_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    r"""Compare two softened distributions along one dimension.

    .. math::
        T^2 \sum_i \sigma(t / T)_i \bigl(\log \sigma(t / T)_i - \log \sigma(s / T)_i\bigr)

    The factor :math:`T^2` keeps the size of the gradient independent of the temperature
    (Hinton et al., 2015). Both logarithms come from ``log_softmax``, which stays finite
    where ``softmax().log()`` underflows.

    Args:
        student: Logits of any shape, at least float32.
        teacher: Logits of the same shape.
        temperature: :math:`T`, ``> 0``; higher is softer.
        dim: The dimension that holds one distribution.

    Returns:
        Divergence in nats, with ``dim`` removed.

    Example:
        >>> soft_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=4.0, dim=1)
        tensor([0., 0.])
    """
    log_student = (student / temperature).log_softmax(dim)
    log_teacher = (teacher / temperature).log_softmax(dim)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim)
