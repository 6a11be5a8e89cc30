"""Write a recipe: the settings that a preset chose, spelt out as a config to read and change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

from kd_dense.mm.configs import RequestError
from kd_dense.mm.presets.settings import Preset
from kd_dense.mm.presets.spelling import BASE, WIDTH, relative, spelt

__all__ = ['recipe']


def recipe(
    base: str,
    teacher: str | Mapping[str, Any] | None,
    names: Sequence[str],
    chosen: Preset,
    folder: Path,
    hooks: bool = False,
    critic: bool = True,
    pure: bool = False,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The text of a recipe that trains what a preset would.

    Args:
        base: Name (``'mmdet::...'``) or path of a config: that of the student; or, where
            ``teacher`` is None, a recipe that names the preset.
        teacher: What [`kd_dense.mm.teachers.guest.Teacher`][] takes. Its path is one from the
            folder that the training is started in.
        names: The presets.
        chosen: What [`kd_dense.mm.presets.choose.choose_preset`][] returned for them.
        folder: Where the recipe will lie, which its bases are relative to.
        hooks: Whether the base has ``custom_hooks``, which are kept where the recipe adds one.
        critic: Whether a hook is added that trains the critic, if there is one.
        pure: Whether the base is in mmengine's pure Python style, as then the recipe must be.
        fields: What else the model says, as ``dict(compile_losses=True)``.

    Raises:
        RequestError: If Python cannot import the base of a recipe in that style.

    Examples:
        >>> pair = dict(tap='neck', loss=dict(type='PairWiseLoss', weight=0.5))
        >>> chosen = Preset({'pair': pair}, (), source='ours', models='FCOS from FCOS')
        >>> text = recipe('my/fcos.py', 'my/teacher.py', ['skd'], chosen, Path('my'))
        >>> print(text[text.index('model') :])
        model = dict(
            _delete_=True,
            type='kd_dense.Distilled',
            student=_base_.model,
            teacher='my/teacher.py',
            terms=dict(pair=dict(tap='neck', loss=dict(type='PairWiseLoss', weight=0.5))))
        <BLANKLINE>
    """
    which = 'preset' if len(names) == 1 else 'presets'
    notes = [f'Chosen by the {which} {", ".join(names)}. Source: {chosen.source}.']
    critic = critic and any(f['loss']['type'] == 'HolisticLoss' for f in chosen.terms.values())
    if pure:
        scope, head = '', _imports(Path(base), folder, critic)
    else:
        scope, head = '_base_.', _bases(base, folder)
        if not BASE.is_file():
            notes.append(
                "configs/_base_/kd_dense.py of kd_dense's repository was not found: train with "
                'its kd_dense train, which imports kd_dense before it reads a config.'
            )
    if critic:
        kept = f'*{scope}custom_hooks, ' if hooks else ''
        head += f'custom_hooks = [{kept}dict(type={_kind("CriticHook", pure)})]\n'
    lines = [
        *([] if pure else ['_delete_=True']),
        f'type={_kind("Distilled", pure)}',
        f'student={scope}model' if teacher is not None else f'student={scope}model.student',
        f'teacher={scope}model.teacher' if teacher is None else f'teacher={spelt(teacher, 12, 4)}',
        *([f'inherit={chosen.inherit!r}'] if chosen.inherit else []),
        *(f'{name}={spelt(value, 5 + len(name), 4)}' for name, value in fields.items()),
        f'terms={spelt(chosen.terms, 10, 4)}',
    ]
    joined = ',\n    '.join(lines)
    return (
        f'"""{"+".join(names).upper()} for {Path(base).stem}.\n\n'
        + '\n'.join(fill(note, WIDTH) for note in notes)
        + f'\n"""\n{head}model = dict(\n    {joined})\n'
    )


def _kind(name: str, pure: bool) -> str:
    return name if pure else f"'kd_dense.{name}'"


def _bases(base: str, folder: Path) -> str:
    bases = [base if '::' in base else relative(Path(base), folder)]
    if BASE.is_file():
        bases.insert(0, relative(BASE, folder))
    return f'_base_ = {spelt(bases, 9)}\n'


def _imports(base: Path, folder: Path, critic: bool) -> str:
    """What comes in the place of bases in the pure Python style."""
    return (
        'from mmengine.config import read_base\n\n'
        f'from kd_dense.mm import {"CriticHook, " if critic else ""}Distilled\n\n'
        f'with read_base():\n    from {_module(base, folder)} import *\n\n'
    )


def _module(path: Path, folder: Path) -> str:
    """A file as Python imports it from a file of a folder."""
    steps = Path(relative(path, folder)).with_suffix('').parts
    names = [step for step in steps if step != '..']
    if not all(name.isidentifier() and not iskeyword(name) for name in names):
        raise RequestError(
            f"{path} is in mmengine's pure Python style, in which a recipe imports it, and "
            f'{"/".join(names)} cannot be imported: give it a name of letters, digits and '
            'underscores, and write the recipe into its folder'
        )
    return '.' * (len(steps) - len(names) + 1) + '.'.join(names)
