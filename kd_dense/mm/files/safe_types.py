"""What a checkpoint may hold beside tensors and plain values.

``torch.load(weights_only=True)`` builds objects only of types that it is told to trust, but of
those with whatever arguments and state the file asks for. For three of the types that mmengine
writes that is too much: a crafted state makes ``numpy.dtype`` take bytes of the file for the
address of an object, ``HistoryBuffer`` replaces the statistics of all its instances, and
``getattr`` reaches anything. So a file gets stand-ins, which check what they are given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

__all__ = ['RefusedError', 'trusted_types']


class RefusedError(Exception):
    """A file names something that is not trusted; the message is its name."""


class _Dtype:
    """A type of numbers or text; never of objects, whose content would be addresses."""

    def __init__(self, code: str, *_: object) -> None:
        if not (isinstance(code, str) and re.fullmatch(r'[biufcSU][1-9]\d{0,8}', code)):
            raise RefusedError(f'numpy.dtype({code if isinstance(code, str) else "..."})')
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state[:5]
        if order not in ('<', '>', '|', '=') or structure != [None, None, None]:
            raise RefusedError('numpy.dtype of a structure')
        self.numpy = self.numpy.newbyteorder(order)


class _Array(np.ndarray):
    """An array of a ``_Dtype``; written to a file again, it is a plain one."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, content = state
        if not isinstance(dtype, _Dtype):
            raise RefusedError('numpy.ndarray of another type')
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f'an array has the shape {shape}')
        if math.prod(shape) * dtype.numpy.itemsize != len(content):
            raise ValueError(f'an array of shape {shape} has {len(content)} bytes')
        plain: Any = (1, shape, dtype.numpy, bool(fortran_order), content)
        super().__setstate__(plain)

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


class _Buffer(HistoryBuffer):
    """A history of numbers, which leaves the statistics of the class alone."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        log, count = state['_log_history'], state['_count_history']
        if not (isinstance(log, _Array) and isinstance(count, _Array)):
            raise RefusedError('mmengine.logging.history_buffer.HistoryBuffer of other things')
        HistoryBuffer.__init__(self, log, count, int(state['max_length']))
        self.__class__ = HistoryBuffer


def _scalar(dtype: Any, content: bytes) -> Any:
    """Stand in for what makes NumPy's scalars."""
    if not isinstance(dtype, _Dtype):
        raise RefusedError('numpy.core.multiarray.scalar of another type')
    if len(content) != dtype.numpy.itemsize:
        raise ValueError(f'a scalar {dtype.numpy} has {len(content)} bytes')
    return np.frombuffer(content, dtype.numpy)[0]


def _reconstruct(*_: object) -> _Array:
    """Stand in for what makes empty arrays, to be filled by ``__setstate__``."""
    return np.empty(0).view(_Array)


_ONE_CYCLE = 'OneCycleParamScheduler'


def _own_function(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which two types of mmengine name functions of their own."""
    if owner is _Buffer and name in ('current', 'max', 'mean', 'min'):
        return None  # statistics, which the class knows by itself
    if owner is _ONE_CYCLE and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(OneCycleParamScheduler, name)
    raise RefusedError('builtins.getattr')


_STAND_INS: dict[str, Any] = {
    'mmengine.logging.history_buffer.HistoryBuffer': _Buffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': _ONE_CYCLE,
    'builtins.getattr': _own_function,
    'builtins.bytes': bytes,  # the content of an empty array
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Array,
    # NumPy 2 has moved these two; files know them under either name.
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy.core.multiarray._reconstruct': _reconstruct,
    'numpy._core.multiarray._reconstruct': _reconstruct,
}


@contextmanager
def trusted_types() -> Iterator[None]:
    """While a file is read, trust these types, and those that the user has told torch to trust.

    The list is torch's, one for the whole process, so it is put back afterwards.
    """
    before = get_safe_globals()
    others = [entry for entry in before if _name(entry) not in _STAND_INS]
    clear_safe_globals()
    add_safe_globals([*others, *((stand_in, name) for name, stand_in in _STAND_INS.items())])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'
