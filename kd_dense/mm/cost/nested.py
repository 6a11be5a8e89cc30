"""Tensors in nested values: how large they are, and cut off from what made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kd_dense.taps import tensors_in

__all__ = ['bytes_of', 'cut']


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in a nested value, each memory once.

    Examples:
        >>> import torch
        >>> x = torch.ones(100)
        >>> bytes_of([x, {'the same': x, 'half as many': x[:50].clone()}])
        600
    """
    sizes = {x.data_ptr(): x.numel() * x.element_size() for x in tensors_in(value)}
    return sum(sizes.values())


def cut(value: Any) -> Any:
    """Cut tensors off the graph that made them; those that had a gradient can have one.

    Args:
        value: A nested value.

    Returns:
        The same with other tensors, in the same memory.
    """
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: cut(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*map(cut, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(cut, value))
    return value
