"""One teacher or several: how a recipe says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from kd_dense.mm.teachers.average import AverageTeacher
from kd_dense.mm.teachers.guest import FIELDS, Teacher, what_it_is

__all__ = [
    'EMA',
    'ONLY',
    'build_one',
    'called',
    'each_teacher',
    'has_own_weights',
    'plain',
    'runs_by_itself',
    'teachers_of',
    'untrained',
]

EMA = 'ema'
ONLY = 'teacher'  # the name of a teacher that has none
# What a dict of one teacher has, of whatever kind.
KINDS = ('type', 'module', *FIELDS)


def teachers_of(spec: Any) -> dict[str, Any]:
    """Tell several teachers from one.

    A dict is one teacher if any of its keys is a field of one, as ``config`` and ``type`` are, or
    is nearly so; and several, by name, if none is.

    Args:
        spec: What a recipe says of its teacher.

    Returns:
        What it says of each, by name; a single one without a name is called ``'teacher'``.

    Raises:
        ValueError: If a name is no plain word, or there is none.

    Examples:
        >>> teachers_of(dict(config='large.py', checkpoint='large.pth')).keys()
        dict_keys(['teacher'])
        >>> teachers_of(dict(large='large.py', other='other.py'))
        {'large': 'large.py', 'other': 'other.py'}
    """
    if not isinstance(spec, Mapping):
        return {ONLY: spec}
    named = {name: one for name, one in spec.items() if name != '_scope_'}
    if not named or any(_is_field(name) for name in named):
        return {ONLY: spec}
    for name, one in named.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f'{name!r} cannot be the name of a teacher: choose a plain word')
        if not (one is None or isinstance(one, (str, os.PathLike, Mapping, nn.Module))):
            raise ValueError(
                f'teacher: there is no field {name!r}, and as the name of one of several teachers '
                f'it expects what a teacher is, as the path of a config, got {one!r}; one teacher '
                'is dict(config=..., checkpoint=...)'
            )
    return named


def each_teacher(spec: Any, change: Callable[[Any], Any]) -> Any:
    """Change what a recipe says of each of its teachers; a name of a config is given as a dict.

    The student itself and its average are left as they are.

    Args:
        spec: What a recipe says of its teacher.
        change: Takes what it says of one, a dict or a model, and returns that changed.
    """
    found = {}
    for name, one in teachers_of(spec).items():
        if isinstance(one, (str, os.PathLike)) and one != EMA:
            one = dict(config=one)
        found[name] = change(one) if runs_by_itself(one) else one
    return found.get(ONLY, found)


def plain(spec: Any) -> Any:
    """A teacher without what it runs faster by."""
    return what_it_is(spec) if isinstance(spec, Mapping) else spec


def untrained(spec: Any) -> Any:
    """A teacher without weights to read, where it is not a model that has its own."""
    if not isinstance(spec, Mapping) or 'module' in spec:
        return spec
    return {**spec, 'checkpoint': None}


def runs_by_itself(spec: Any) -> bool:
    """Whether this is neither the student itself nor its average."""
    return spec is not None and not _is_average(spec)


def _is_average(spec: Any) -> bool:
    kind = spec.get('type') if isinstance(spec, Mapping) else spec
    return isinstance(kind, str) and kind == EMA


def build_one(spec: Any, student: Any) -> Teacher | None:
    """Build one teacher.

    Args:
        spec: What a recipe says of it: None, where it is the student itself; ``'ema'`` or
            ``dict(type='ema', ...)``, where it is the student's running average; or see
            [`kd_dense.mm.teachers.guest.Teacher`][].
        student: The student.

    Returns:
        The teacher, without its weights; None for the student itself.

    Raises:
        FileNotFoundError: If a config does not exist.
        ValueError: If a field is unknown or has a bad value.
    """
    if spec is None:
        return None
    return AverageTeacher.of(student, spec) if _is_average(spec) else Teacher(spec)


def has_own_weights(teacher: Teacher | None) -> bool:
    """Whether a teacher has weights that are not the student's."""
    return teacher is not None and not isinstance(teacher, AverageTeacher)


def called(name: str) -> str:
    """What messages call a teacher of this name.

    Examples:
        >>> called('large')
        "teacher 'large'"
    """
    return 'teacher' if name == ONLY else f'teacher {name!r}'


def _is_field(name: Any) -> bool:
    return isinstance(name, str) and bool(get_close_matches(name, KINDS, cutoff=0.8))
