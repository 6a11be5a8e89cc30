"""Which settings a method gets for two models: the first of its own that fit them.

``docs/presets.md`` shows the table, the roles and the rule that scales weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from torch import nn

from kd_dense.mm.presets import methods
from kd_dense.mm.presets.roles import Pair
from kd_dense.mm.presets.settings import Preset, Sums, scaled
from kd_dense.taps import near_names

__all__ = ['PRESETS', 'choose_preset']

# The order in help and messages; others come behind, by name.
FIRST = ('cwd', 'skd', 'fgd', 'ld', 'intrakd')


def _files() -> dict[str, ModuleType]:
    """The files in methods/, by name."""
    names = {file.name for file in iter_modules(methods.__path__)}
    ordered = (*FIRST, *sorted(names - {*FIRST}))
    return {name: import_module(f'{methods.__name__}.{name}') for name in ordered}


_FILES = _files()
PRESETS: dict[str, tuple[Preset, ...]] = {name: file.PRESETS for name, file in _FILES.items()}
SUMS: dict[str, Sums] = {loss: s for file in _FILES.values() for loss, s in file.SUMS.items()}


def choose_preset(names: str | Sequence[str], student: nn.Module, teacher: nn.Module) -> Preset:
    """Find settings of one or several methods that fit a student and its teacher.

    Args:
        names: Name of a method, as ``'cwd'``, or names, as ``['fgd', 'cwd']``.
        student: The student.
        teacher: The teacher.

    Returns:
        For each method the first of ``PRESETS[name]`` that fits both models, with the taps of
        these models and with weights for their maps. Of several methods, all terms, and all
        parts that any of them inherits; a term whose name is taken gets that of its method in
        front.

    Raises:
        ValueError: If there is no such method, a name comes twice, or none of the settings of a
            method fits.
        RuntimeError: If the models run at no size that could be tried.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not names:
        raise ValueError(f"expected preset as a name or a list of names, as 'cwd', got {names!r}")
    for name in names:
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f'there is no preset {name!r}, {near_names(str(name), PRESETS)}')
    if len(set(names)) < len(names):
        raise ValueError(f'preset: a name comes twice in {list(names)}')
    pair = Pair(student, teacher)
    chosen = {name: _choose(name, pair) for name in names}
    terms: dict[str, Any] = {}
    for name, preset in chosen.items():
        for term, fields in preset.terms.items():
            terms[f'{name}_{term}' if term in terms else term] = fields
    return Preset(
        terms=terms,
        inherit=tuple(dict.fromkeys(part for p in chosen.values() for part in p.inherit)),
        source='; '.join(f'{name}: {preset.source}' for name, preset in chosen.items()),
        models=f'{type(student).__name__} from {type(teacher).__name__}',
    )


def _choose(name: str, pair: Pair) -> Preset:
    for preset in PRESETS[name]:
        terms = _fitted(preset, pair) if pair.student.has(preset.part, preset.kinds) else None
        if terms is not None:
            same = all(fields['loss'] == preset.terms[t]['loss'] for t, fields in terms.items())
            return preset._replace(
                terms=terms,
                inherit=pair.inherited(preset.inherit),
                source=preset.source + ('' if same else ' (weights scaled to these maps)'),
            )
    known = ', '.join(dict.fromkeys(preset.models for preset in PRESETS[name]))
    student, teacher = (type(side.whole).__name__ for side in (pair.student, pair.teacher))
    raise ValueError(
        f'preset {name!r} has settings for {known}, and none of these fits a student {student} '
        f'with a teacher {teacher}: say `terms` instead (kd_dense taps lists what both have)'
    )


def _fitted(preset: Preset, pair: Pair) -> dict[str, Any] | None:
    """The terms of a preset for two models; None, if one of them lacks a place."""
    terms = {}
    for name, fields in preset.terms.items():
        found = pair.places(fields['tap'])
        if found is None:
            return None
        ours, theirs, maps = found
        tap = ours if ours == theirs else dict(student=ours, teacher=theirs)
        loss = dict(fields['loss'])
        if preset.layout is not None:
            loss = scaled(loss, maps, preset.layout, SUMS[loss['type']])
        terms[name] = dict(tap=tap, loss=loss)
    return terms
