"""A translation as the text of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from kd_dense.mm.mmrazor.translate import Translation
from kd_dense.mm.presets.spelling import BASE, WIDTH, relative, spelt

__all__ = ['recipe_text']


def recipe_text(found: Translation, folder: Path) -> str:
    """The text of a recipe.

    Args:
        found: The translation.
        folder: Where the recipe will lie, which its bases are relative to.
    """
    student = found.student
    bases = [base if '::' in base else relative(Path(base), folder) for base in student.bases]
    if BASE.is_file():
        bases.insert(0, relative(BASE, folder))
    lines = [
        f'"""{_title(found)}"""',
        *_comments(found),
        _assigned('_base_', bases if len(bases) > 1 else bases[0]),
    ]
    if student.edits:
        lines += ['student = _base_.model', *_edits('student', student.edits)]
    lines += [_assigned(name, value) for name, value in found.settings.items()]
    model = [
        ('_delete_', 'True'),
        ('type', repr('kd_dense.Distilled')),
        ('student', _student(found)),
        ('teacher', spelt(found.teacher.spec, 12, 4)),
    ]
    if student.inherit:
        model.append(('inherit', spelt(student.inherit, 12, 4)))
    model.append(('terms', spelt(found.terms, 10, 4)))
    fields = ',\n'.join(f'    {name}={value}' for name, value in model)
    return '\n'.join([*lines, f'model = dict(\n{fields})', ''])


def _title(found: Translation) -> str:
    return '\n'.join(
        wrap(
            f'{found.source.path.name} of mmrazor, as kd_dense from-mmrazor has translated it.',
            WIDTH - 3,
        )
    )


def _student(found: Translation) -> str:
    if found.student.edits is None:
        return spelt(found.student.model, 12, 4)
    return 'student' if found.student.edits else '_base_.model'


def _comments(found: Translation) -> Iterator[str]:
    """What is different, and what could not be carried over."""
    for line in found.notes.lines():
        if line.endswith(':'):
            yield f'# {line}'
        else:
            yield from wrap(line, WIDTH, initial_indent='# - ', subsequent_indent='#   ',
                            break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _edits(name: str, edits: Mapping[str, Any]) -> Iterator[str]:
    """Statements that change a config."""
    for key, value in edits.items():
        if isinstance(value, Mapping) and '_delete_' not in value and value:
            yield from _edits(f'{name}.{key}', value)
            continue
        if isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if k != '_delete_'}
        yield _assigned(f'{name}.{key}', value)


def _assigned(name: str, value: Any) -> str:
    return f'{name} = {spelt(value, len(name) + 3)}'
