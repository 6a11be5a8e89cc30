"""Counts what a device would do: kernels launched, and bytes read and written.

Tensors on the meta device have shapes and no numbers. Code that chooses its way by the kind of
device goes there as on a card, and every operator that it calls passes through a dispatch mode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ['Count', 'count', 'size_of']

# Operators that only make memory known, or know it by another name.
FREE = {
    '_reshape_alias',
    '_unsafe_view',
    'empty',
    'empty_like',
    'empty_strided',
    'lift_fresh',
    'new_empty',
    'new_empty_strided',
    'resize_',
    'set_',
}
# What they write over is not read.
OVERWRITING = {'copy_', 'fill_', 'normal_', 'random_', 'uniform_', 'zero_', 'bernoulli_'}
# They read no more than they write of what they take from.
TAKING = {'gather', 'index', 'index_select', '_unsafe_index'}
# They read nothing of what they are like.
LIKE = ('new_', 'empty_like', 'full_like', 'ones_like', 'zeros_like')


class Count(NamedTuple):
    """Operators that launch a kernel, what they read and write, and how often each was called."""

    launches: int
    bytes: int
    operators: Counter[str]


class Counted(TorchDispatchMode):
    """Counts the operators that touch a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.operators: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix('aten::')
        written = self._here(result)
        if not (func.is_view or name in FREE) and (written or self._here([args, kwargs])):
            self.operators[name] += 1
            self.bytes += self._read(name, func._schema, args, kwargs, written)
            self.bytes += sum(map(size_of, written))
        return result

    def _here(self, tree: Any) -> list[Tensor]:
        leaves = tree_leaves(tree)
        return [x for x in leaves if isinstance(x, Tensor) and x.device.type == self.device.type]

    def _read(
        self,
        name: str,
        schema: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        written: list[Tensor],
    ) -> int:
        if name.startswith(LIKE):
            return 0
        total = 0
        limit = sum(map(size_of, written)) if name in TAKING else None
        for index, argument in enumerate(schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            mutated = argument.alias_info is not None and argument.alias_info.is_write
            if mutated and (argument.is_out or name in OVERWRITING):
                continue
            size = sum(map(size_of, self._here(value)))
            total += size if limit is None or index else min(size, limit)
        return total


def size_of(x: Tensor) -> int:
    """Bytes of memory that a tensor shows; what is expanded counts once."""
    sizes = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride != 0]
    return torch.Size(sizes).numel() * x.element_size()


def count(call: Callable[[], Any], device: str = 'meta') -> Count:
    """Count the kernels that a call launches on a device.

    Args:
        call: Without arguments, on tensors that are made already.
        device: Where these are.

    Examples:
        >>> x = torch.zeros(2, 3, device='meta')
        >>> count(lambda: x.view(6).exp().sum())
        Count(launches=2, bytes=76, operators=Counter({'exp': 1, 'sum': 1}))
    """
    with Counted(torch.device(device)) as mode:
        call()
    return Count(mode.operators.total(), mode.bytes, mode.operators)
