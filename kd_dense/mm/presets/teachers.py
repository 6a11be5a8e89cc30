"""Presets for several teachers: each its own, under names that say whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kd_dense.mm.models.probe import needs_features_only
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
    bearer: str | None = None,
) -> Preset:
    """Find settings of methods for a student and its teachers.

    Args:
        preset: One or several methods; of several teachers ``dict(NAME='cwd', ...)``, or methods
            on logits alone, which then learn from all of them at once.
        student: The student.
        teachers: The teachers by name.
        weights: As of [`kd_dense.mm.presets.choose.choose_preset`][]. Shares of terms that have a
            teacher each are divided by the number of teachers; published weights are those of
            each method, as it is.
        bearer: The teacher whose weights may be inherited.

    Returns:
        The terms, of teachers with methods of their own as ``<term>_<teacher>``.

    Raises:
        ValueError: If several teachers have one method that compares more than logits, one of
            them is not there, or the settings of a method do not fit.
    """
    if not isinstance(preset, Mapping):
        return _for_all(preset, student, teachers, weights, bearer)
    each = {name: methods for name, methods in preset.items() if name != '_scope_'}
    terms: dict[str, Any] = {}
    found = {}
    for name, methods in each.items():
        if name not in teachers:
            raise ValueError(f'preset: there is no teacher {name!r}, {near_names(name, teachers)}')
        found[name] = choose_preset(methods, student, teachers[name], weights)
        for term, fields in found[name].terms.items():
            own = {**fields, 'teacher': name}
            if 'share' in fields:
                own['share'] = round(fields['share'] / len(each), 3)
            terms[f'{term}_{name}'] = own
    return Preset(
        terms=terms,
        inherit=found[bearer].inherit if bearer in found else (),
        source='; '.join(f'{name}: {one.source}' for name, one in found.items()),
        models=', '.join(f'{one.models} ({name})' for name, one in found.items()),
    )


def _for_all(
    preset: str | Sequence[str],
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    weights: Weights,
    bearer: str | None,
) -> Preset:
    """The settings for a single teacher, or for all at once."""
    first, *others = teachers
    found = choose_preset(preset, student, teachers[first], weights)
    found = found._replace(inherit=found.inherit if first == bearer else ())
    if not others:
        return found
    for name, fields in found.terms.items():
        taps = fields['tap'] if isinstance(fields['tap'], Mapping) else {'both': fields['tap']}
        if needs_features_only(taps.values()) or fields.get('shared_rois'):
            said = ', '.join(f'{teacher}=...' for teacher in teachers)
            raise ValueError(
                f'preset {preset!r}: its term {name!r} compares more than logits, of which alone '
                'there is a mean of several teachers: say what is learnt from each, as '
                f'preset=dict({said})'
            )
        fields['teacher'] = [*teachers]
    return found
