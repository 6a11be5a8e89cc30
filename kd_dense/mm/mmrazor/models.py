"""Student and teacher of a config of mmrazor, as a recipe names them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from kd_dense.mm.configs import RequestError, read_config
from kd_dense.mm.mmrazor.note import Notes
from kd_dense.mm.mmrazor.reading import Source, mended, merged, plain, scoped, words
from kd_dense.mm.mmrazor.settings import changes

__all__ = ['Student', 'Teacher', 'compare_preprocessing', 'find_student', 'find_teacher']

SEEN = ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'pad_value', 'pad_val')


class Student(NamedTuple):
    """The student of a recipe.

    Attributes:
        bases: What the recipe builds on.
        base: What they come to, without scopes.
        model: Config of the model, with all that is changed.
        edits: What is changed in the model of the bases; None, where they have none like it and
            it is written out.
        inherit: Parts that start from the teacher's weights.
        load_from: Weights that it starts from, where it is to start from published ones.
    """

    bases: list[str]
    base: dict[str, Any]
    model: dict[str, Any]
    edits: dict[str, Any] | None
    inherit: tuple[str, ...] = ()
    load_from: str | None = None


class Teacher(NamedTuple):
    """The teacher of a recipe: what a recipe says of it, and its config, if that can be read."""

    spec: str | dict[str, Any]
    config: Config | None


def find_student(source: Source, notes: Notes) -> Student:
    """Tell what the student is, and what a recipe of it builds on.

    Args:
        source: The config of mmrazor.
        notes: What is to be said is added.

    Raises:
        RequestError: If there is no student, or its config cannot be found.
    """
    found = source.config.model.get('architecture')
    if isinstance(found, Mapping) and 'cfg_path' in found:
        student = _by_name(found, source, notes)
    elif isinstance(found, Mapping) and 'type' in found:
        student = _written_out(found, source)
    else:
        raise RequestError(f'{source.path}: model.architecture is no model, but {found!r}')
    own = plain(source.config.model.get('data_preprocessor'))
    if own is None or own == student.model.get('data_preprocessor'):
        return student
    edits = student.edits
    if edits is not None:
        edits = {**edits, **changes(dict(data_preprocessor=own), student.model)}
    return student._replace(model={**student.model, 'data_preprocessor': own}, edits=edits)


def _by_name(found: Mapping[str, Any], source: Source, notes: Notes) -> Student:
    """The student of a config that mmrazor is told by name."""
    where = 'model.architecture'
    name = _config_of(found['cfg_path'], where, source, notes)
    base = plain(merged([name]).to_dict())
    if not isinstance(base.get('model'), Mapping):
        raise RequestError(f'{source.path}: {where} names {name}, which has no model')
    for other in found.keys() - {'cfg_path', 'pretrained', '_scope_'}:
        notes.changed(f'{where}.{other}', 'left out: say it in the config of the student')
    load_from = None
    if found.get('pretrained'):
        load_from = read_config(name, pretrained=True).get('model_path')
        if load_from is None:
            notes.changed(
                f'{where}.pretrained',
                'left out: no weights are published with the config of the student',
            )
    return Student([name], base, base['model'], {}, load_from=load_from)


def _written_out(found: Mapping[str, Any], source: Source) -> Student:
    """The student of a config that stands in that of mmrazor."""
    base = plain(merged(source.bases).to_dict())
    model, inherit = _inherited(scoped(found), source.config.model.get('teacher_ckpt'))
    stock = base.get('model') or {}
    alike = stock.get('type') == model['type'] and stock.keys() <= model.keys()
    edits = changes(plain(model), stock) if alike else None
    return Student(source.bases, base, model, edits, inherit)


def _inherited(model: dict[str, Any], checkpoint: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A model less the parts that are to start from the teacher's checkpoint, and their names."""
    parts = []
    for name, part in model.items():
        init = (part.get('init_cfg') if isinstance(part, Mapping) else None) or {}
        own = isinstance(init, Mapping) and str(init.get('prefix', '')).rstrip('.') == name
        if own and checkpoint and init.get('checkpoint') == checkpoint:
            parts.append(name)
    without = {
        name: {key: value for key, value in model[name].items() if key != 'init_cfg'}
        for name in parts
    }
    return {**model, **without}, tuple(parts)


def _config_of(name: str, where: str, source: Source, notes: Notes) -> str:
    """A name or path of the config that mmrazor is told by name."""
    if '::' not in str(name):
        raise RequestError(
            f'{source.path}: {where} has cfg_path={name!r}, and mmengine takes names as '
            "'mmdet::FOLDER/FILE.py' there"
        )
    stem = PurePosixPath(name.partition('::')[2]).stem
    for base in source.bases:  # its package need not be installed
        if '::' not in base and Path(base).stem == stem:
            return base
    right = mended(name)
    if right != name:
        notes.known(f'{where}.cfg_path', f'{name} does not exist; meant is {right}')
    return right


def find_teacher(source: Source, notes: Notes) -> Teacher:
    """Tell what the teacher is, and which weights it has.

    Args:
        source: The config of mmrazor.
        notes: What is to be said is added.

    Raises:
        RequestError: If there is no teacher, or its config cannot be found.
    """
    model = source.config.model
    found, checkpoint = model.get('teacher'), model.get('teacher_ckpt')
    if isinstance(found, Mapping) and 'cfg_path' in found:
        return _teacher_by_name(found, checkpoint, source, notes)
    if not isinstance(found, Mapping) or 'type' not in found:
        raise RequestError(f'{source.path}: model.teacher is no model, but {found!r}')
    init = found.get('init_cfg') or {}
    checkpoint = checkpoint or init.get('checkpoint')
    if not checkpoint:
        notes.known(
            'model.teacher_ckpt',
            'is not there, so that the teacher is untrained, here as in mmrazor: give its '
            'weights as checkpoint',
        )
    scope = source.config.get('default_scope')
    config = Config(dict(model=ConfigDict(scoped(found)), default_scope=scope))
    return Teacher(dict(config=scoped(found), checkpoint=checkpoint or None), config)


def _teacher_by_name(
    found: Mapping[str, Any], checkpoint: str | None, source: Source, notes: Notes
) -> Teacher:
    """The teacher of a config that mmrazor is told by name."""
    try:
        name = _config_of(found['cfg_path'], 'model.teacher', source, notes)
    except RequestError as error:
        if find_spec(found['cfg_path'].partition('::')[0]) is not None:
            raise
        notes.known('model.teacher.cfg_path', f'{error}: it is carried over unseen')
        return Teacher(dict(config=found['cfg_path'], checkpoint=checkpoint), None)
    config = read_config(name, pretrained=True)
    own = config.get('model_path')
    return Teacher(_spec(name, own, checkpoint, bool(found.get('pretrained')), notes), config)


def _spec(
    name: str, own: str | None, checkpoint: str | None, pretrained: bool, notes: Notes
) -> str | dict[str, Any]:
    """What a recipe says of a teacher, with the weights published with its config or others.

    Args:
        name: Its config.
        own: Address of the published weights, if there are any.
        checkpoint: Those that mmrazor is told.
        pretrained: Whether it is told to take the published ones.
        notes: What is to be said is added.
    """
    where = 'model.teacher_ckpt'
    if not checkpoint:
        if own is None:
            notes.changed(
                where,
                'is not there, and no weights are published with the config of the teacher, which '
                'is untrained so: give them as checkpoint',
            )
            return dict(config=name, checkpoint=None)
        if not pretrained:
            notes.changed(
                where,
                'is not there, so that mmrazor distils an untrained teacher; meant are the '
                'weights published with its config',
            )
        return name
    if own is None:
        return dict(config=name, checkpoint=checkpoint)
    theirs, wanted = PurePosixPath(own).name, PurePosixPath(checkpoint).name
    if theirs == wanted:
        return name
    if pretrained and not {*words(PurePosixPath(name).stem)} <= {*words(wanted)}:
        notes.changed(
            where,
            f'{wanted} are the weights of another model, which a base of the config names; meant '
            'are those published with the config of the teacher, as pretrained=True says',
        )
        return name
    return dict(config=name, checkpoint=checkpoint)


def compare_preprocessing(student: Student, teacher: Teacher, notes: Notes) -> None:
    """Say so where the teacher expects images that are normalised in another way.

    Args:
        student: The student.
        teacher: The teacher.
        notes: What is to be said is added.
    """
    if teacher.config is None:
        return
    beside = teacher.config.get('data_preprocessor')
    both = (
        student.model.get('data_preprocessor') or student.base.get('data_preprocessor'),
        plain(teacher.config.model).get('data_preprocessor') or beside,
    )
    ours, theirs = ([plain((one or {}).get(name)) or 0 for name in SEEN] for one in both)
    if ours != theirs:
        notes.known(
            'model.teacher',
            'is given images as it was trained on; mmrazor gives it those of the student, which '
            'are normalised in another way',
        )
