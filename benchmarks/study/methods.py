"""What the study compares: presets by their names, and what else was tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.study.cells import Data
from kd_dense.mm.presets.choose import METHODS as PRESETS

__all__ = ['METHODS', 'distillation']

# Terms that are no preset, by a name of their own and the task that they are for.
TRIED: dict[str, dict[str, Mapping[str, Any]]] = {}

METHODS = ('alone', 'inherit', *PRESETS, *TRIED)


def distillation(method: str, data: Data, weights: str) -> dict[str, Any]:
    """What a recipe says beside student and teacher.

    Args:
        method: Its name.
        data: The pair.
        weights: Of a preset, ``'published'`` or ``'shares'``.

    Raises:
        ValueError: If the method is not made for the task.
    """
    if method == 'inherit':
        off = dict(type='CWDLoss', weight=0.0)
        tap = 'neck' if data.task == 'detection' else 'backbone[-1]'
        return dict(inherit=data.inherit, terms=dict(nothing=dict(tap=tap, loss=off)))
    if method in TRIED:
        if data.task not in TRIED[method]:
            raise ValueError(f'{method} is not for {data.task}')
        return dict(TRIED[method][data.task])
    return dict(preset=method) if weights == 'published' else dict(preset=method, weights=weights)
