"""Presets for several teachers: each its own, under names that say whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kd_dense.mm.presets.choose import Weights, choose_preset
from kd_dense.mm.presets.settings import Preset
from kd_dense.taps import near_names

__all__ = ['Methods', 'choose_for_teachers']

Methods = str | Sequence[str] | Mapping[str, str | Sequence[str]]


def choose_for_teachers(
    preset: Methods,
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    weights: Weights = 'auto',
) -> Preset:
    """Find settings of methods for a student and each of its teachers.

    Args:
        preset: Of a single teacher one or several methods; of several ``dict(NAME='cwd', ...)``.
        student: The student.
        teachers: The teachers by name.
        weights: As of [`kd_dense.mm.presets.choose.choose_preset`][]. Shares are divided by the
            number of teachers; published weights are those of each method, as it is.

    Returns:
        The terms, of several teachers as ``<term>_<teacher>``; and what is inherited, from the
        first teacher.

    Raises:
        ValueError: If several teachers have one preset, one of them is not there, or the settings
            of a method do not fit.
    """
    if isinstance(preset, Mapping):
        preset = {name: methods for name, methods in preset.items() if name != '_scope_'}
    elif len(teachers) == 1:
        return choose_preset(preset, student, next(iter(teachers.values())), weights)
    else:
        said = ', '.join(f'{name}=...' for name in teachers)
        raise ValueError(
            f'preset {preset!r} is for one teacher: say what is learnt from each of several, as '
            f'preset=dict({said})'
        )
    terms: dict[str, Any] = {}
    found = {}
    for name, methods in preset.items():
        if name not in teachers:
            raise ValueError(f'preset: there is no teacher {name!r}, {near_names(name, teachers)}')
        found[name] = choose_preset(methods, student, teachers[name], weights)
        for term, fields in found[name].terms.items():
            own = {**fields, 'teacher': name}
            if 'share' in fields:
                own['share'] = round(fields['share'] / len(preset), 3)
            terms[f'{term}_{name}'] = own
    first = next(iter(teachers))
    return Preset(
        terms=terms,
        inherit=found[first].inherit if first in found else (),
        source='; '.join(f'{name}: {one.source}' for name, one in found.items()),
        models=', '.join(f'{one.models} ({name})' for name, one in found.items()),
    )
