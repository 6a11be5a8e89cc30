"""From a student, a teacher and methods to a recipe: in memory, or as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from kd_dense.mm.configs import RequestError, distils, has_hook, is_pure, read_config
from kd_dense.mm.distil.distilled import Distilled
from kd_dense.mm.hooks.critic import CriticHook
from kd_dense.mm.presets.choose import Weights
from kd_dense.mm.presets.recipe import recipe
from kd_dense.mm.presets.settings import Preset
from kd_dense.mm.presets.teachers import choose_for_teachers
from kd_dense.mm.run.unlabelled import add_unlabelled
from kd_dense.mm.teachers.several import EMA, ONLY, build_one, has_own_weights, teachers_of

# What a model says beside its preset, which a recipe that spells it out keeps.
KEPT = ('data_preprocessor', 'checks', 'unlabelled', 'pseudo', 'compile_losses')

__all__ = ['DEFAULT', 'add_teacher', 'read_recipe', 'set_work_dir', 'teacher_spec', 'write_recipe']

# The methods of a student with a teacher, if none is named.
DEFAULT = ('auto',)


def read_recipe(
    config: str | os.PathLike[str],
    teacher: str | os.PathLike[str] | Mapping[str, Any] | None,
    methods: Sequence[str],
    teacher_checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    weights: Weights = 'auto',
    unlabelled: str | os.PathLike[str] | None = None,
    labels: bool = True,
) -> Config:
    """Read a recipe, or make one of the config of a student.

    Args:
        config: A recipe; or, with a teacher, the config of a student.
        teacher: Config of the teacher.
        methods: Names of presets; ``'auto'``, if there are none.
        teacher_checkpoint: See [`teacher_spec`][].
        options: Settings to override.
        weights: Of the presets, see [`kd_dense.mm.presets.choose.choose_preset`][].
        unlabelled: Pictures without labels: see [`kd_dense.mm.run.unlabelled.add_unlabelled`][].
        labels: Whether pictures with labels are trained on as well.

    Raises:
        RequestError: If a config does not exist, or these do not go together.
    """
    if not teacher and (methods or teacher_checkpoint):
        raise RequestError(
            'methods (--distill) and a checkpoint of the teacher (--teacher-checkpoint) want a '
            'teacher (--teacher)'
        )
    found = read_config(config, options)
    if teacher:
        spec = teacher_spec(teacher, teacher_checkpoint)
        add_teacher(found, spec, methods or DEFAULT, weights)
    elif weights != 'auto':
        raise RequestError(
            f'weights {weights!r} (--weights) belong to methods and their teacher (--distill, '
            '--teacher); a recipe says share=1.0 in its terms'
        )
    if unlabelled is not None:
        add_unlabelled(found, unlabelled, labels)
    elif not labels:
        raise RequestError(
            'to train without labels (--no-labels) needs pictures: --unlabelled FOLDER'
        )
    return found


def set_work_dir(
    config: Config, work_dir: str | os.PathLike[str] | None, source: str | os.PathLike[str]
) -> None:
    """Settle where a run writes: as asked for, as the config says, or by the config's name."""
    if work_dir:
        config.work_dir = os.fspath(work_dir)
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs') / Path(source).stem)


def teacher_spec(
    name: str | os.PathLike[str] | Mapping[str, Any],
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """What a recipe says of a teacher.

    Args:
        name: Name or path of its config; ``'ema'`` for the student's running average; or all that
            is said of it, as a dict.
        checkpoint: Its weights, a path or an address; ``'none'`` for an untrained teacher; by
            default those published with the config.

    Raises:
        RequestError: If there is no such config or checkpoint, or none is published.
    """
    if isinstance(name, Mapping):
        if checkpoint is not None:
            raise RequestError('say the checkpoint of this teacher beside the rest of it')
        return dict(name)
    name = os.fspath(name)
    if name == EMA:
        if checkpoint is not None:
            raise RequestError(
                f"the teacher {EMA!r} is the student's running average, and has no checkpoint of "
                'its own: leave out --teacher-checkpoint'
            )
        return dict(type=EMA)
    published = read_config(name, pretrained=True).get('model_path')
    if checkpoint is None and published is None:
        raise RequestError(
            f'the teacher {name} comes without published weights: give --teacher-checkpoint FILE '
            "(in Python teacher_checkpoint='FILE'), or 'none' for an untrained teacher"
        )
    if checkpoint is None:
        return dict(config=name)
    if checkpoint == 'none':
        return dict(config=name, checkpoint=None)
    checkpoint = os.fspath(checkpoint)
    if '://' not in checkpoint and not Path(checkpoint).expanduser().is_file():
        raise RequestError(
            f"the teacher's checkpoint {checkpoint} does not exist (looked in {Path.cwd()})"
        )
    return dict(config=name, checkpoint=checkpoint)


def add_teacher(
    config: Config,
    teacher: Mapping[str, Any],
    methods: Sequence[str],
    weights: Weights = 'auto',
) -> None:
    """Make a recipe of the config of a student.

    Args:
        config: It is changed.
        teacher: What [`teacher_spec`][] returned.
        methods: Names of presets.
        weights: Of the presets.

    Raises:
        RequestError: If it is a recipe already.
    """
    if distils(config):
        raise RequestError(
            f'{config.filename} is a recipe and has a teacher already: leave out the teacher and '
            'the methods (--teacher, --distill), or give the config of its student'
        )
    config.model = dict(
        type='kd_dense.Distilled',
        student=config.model,
        teacher=dict(teacher),
        preset=[*methods],
    )
    if weights != 'auto':
        config.model.weights = weights


def write_recipe(config: Config, base: str, with_teacher: bool, file: Path | None) -> str:
    """Write what the presets choose as a recipe.

    Args:
        config: Of a distilled model that names a preset.
        base: What the recipe builds on: name or path of the student's config; or, if that had
            a teacher already, of the recipe that names the preset.
        with_teacher: Whether the recipe names the teacher, because ``base`` has none.
        file: Where to write; None for nowhere.

    Returns:
        The text.

    Raises:
        RequestError: If there is no preset, the file exists, is not a ``.py``, or cannot be
            written.
    """
    model = config.model
    if not distils(config) or not model.get('preset'):
        raise RequestError(
            '--dump-config writes what presets choose: say --teacher and --distill, or give a '
            "recipe with preset='METHOD'"
        )
    if file is not None and file.exists():
        raise RequestError(f'{file} exists already: choose another name, or remove it')
    if file is not None and file.suffix != '.py':
        raise RequestError(f'expected the name of a recipe to end in .py, got {file}')
    methods = model.preset.values() if isinstance(model.preset, Mapping) else [model.preset]
    names = [x for one in methods for x in ([one] if isinstance(one, str) else one)]
    if 'data_preprocessor' in config:
        model.student.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        chosen = _chosen(model)
    teacher: Any = None
    if with_teacher:
        alone = model.teacher.keys() == {'config'}
        teacher = model.teacher.config if alone else model.teacher
    folder = Path.cwd() if file is None else file.absolute().parent
    pure = is_pure(config)
    text = recipe(
        str(config.filename) if pure else base,
        teacher,
        names,
        chosen,
        folder,
        hooks=bool(config.get('custom_hooks')),
        critic=not has_hook(config, CriticHook),
        pure=pure,
        fields={name: model[name] for name in KEPT if name in model},
    )
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        except OSError as error:
            raise RequestError(f'cannot write {file}: {error.strerror}') from error
    return text


def _chosen(model: Any) -> Preset:
    """What the presets of a recipe choose, all of which fits."""
    student = MODELS.build(model.student)
    specs = teachers_of(model.teacher)
    built = {name: build_one(one, student) for name, one in specs.items()}
    bearer = next((name for name, one in built.items() if has_own_weights(one)), None)
    models = {name: student if one is None else one.model for name, one in built.items()}
    weights = model.get('weights', 'auto')
    chosen = choose_for_teachers(model.preset, student, models, weights, bearer)
    again = {name: models[name] if has_own_weights(built[name]) else specs[name] for name in specs}
    Distilled(student, again.get(ONLY, again), chosen.terms, chosen.inherit)
    return chosen
