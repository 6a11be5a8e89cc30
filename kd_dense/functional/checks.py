"""What losses check of their arguments, and the precision they compute in."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

__all__ = [
    'at_least_float32',
    'check_choice',
    'check_published_batch',
    'check_temperature',
    'published_sum',
    'without_autocast',
]


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged where it is more precise already.

    Examples:
        >>> at_least_float32(torch.zeros(1, dtype=torch.float16)).dtype
        torch.float32
        >>> at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Compute in the precision of the tensors themselves, also in a block under autocast.

    Args:
        x: Any tensor on the device in question.

    Examples:
        >>> x = torch.ones(1, 1)
        >>> with torch.autocast('cpu', torch.bfloat16):
        ...     rounded = x @ x
        ...     with without_autocast(x):
        ...         exact = x @ x
        >>> rounded.dtype, exact.dtype
        (torch.bfloat16, torch.float32)
    """
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # 'meta' has none to turn off
        return nullcontext()
    return torch.autocast(device, enabled=False)


def check_choice(owner: str, name: str, value: str, literal: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is one of a ``Literal``.

    Examples:
        >>> from typing import Literal
        >>> check_choice('Paint', 'colour', 'blue', Literal['red', 'green'])
        Traceback (most recent call last):
            ...
        ValueError: Paint expects colour to be one of ('red', 'green'), got 'blue'
    """
    if value not in get_args(literal):
        raise ValueError(f'{owner} expects {name} to be one of {get_args(literal)}, got {value!r}')


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless ``temperature`` is positive and finite."""
    real = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not (real and temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f'expected a temperature > 0, got temperature={temperature!r}')


def check_published_batch(owner: str, published_batch: int | None) -> None:
    """Raise ``ValueError`` unless ``published_batch`` is a number of images or ``None``."""
    if published_batch is None or (isinstance(published_batch, int) and published_batch >= 1):
        return
    raise ValueError(
        f'{owner} expects published_batch as an int >= 1 or None, '
        f'got published_batch={published_batch!r}'
    )


def published_sum(total: Tensor, images: int, published_batch: int | None) -> Tensor:
    """Make a sum over the images of a batch independent of how many they are.

    Some published losses sum over images, so that their weights belong to the authors' batch.

    Args:
        total: Sum over the images of this batch.
        images: How many images that is.
        published_batch: How many images the authors' batch had: the mean over images, times
            this, is returned. ``None`` returns ``total``.

    Returns:
        A tensor like ``total``.

    Examples:
        >>> published_sum(torch.tensor(6.0), images=3, published_batch=8)
        tensor(16.)
    """
    return total if published_batch is None else total * (published_batch / images)
