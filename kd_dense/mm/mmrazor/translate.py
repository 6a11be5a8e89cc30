"""From a config of mmrazor 1.x to a recipe that computes the same, and what it cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.config import Config

from kd_dense.mm.configs import RequestError, type_name
from kd_dense.mm.mmrazor.models import (
    Student,
    Teacher,
    compare_preprocessing,
    find_student,
    find_teacher,
)
from kd_dense.mm.mmrazor.note import Notes
from kd_dense.mm.mmrazor.places import Places, skeleton
from kd_dense.mm.mmrazor.reading import Source, plain, read_source
from kd_dense.mm.mmrazor.settings import changes, kept_settings
from kd_dense.mm.mmrazor.terms import terms_of

__all__ = ['Translation', 'translate']

# Switches of the algorithm, the only value that is carried over, and why.
SWITCHES = {
    'teacher_trainable': (False, 'a teacher is frozen here'),
    'teacher_norm_eval': (True, 'a teacher is in eval mode here, its norms and all else'),
    'student_trainable': (True, 'a student is always trained here'),
    'calculate_student_loss': (True, "the student's own losses are always there"),
}
# A shipped config that is not what it is called, by the name of its file.
MEANT: dict[str, tuple[str, dict[str, Any]]] = {
    'cwd_cls_head_gfl_r101_fpn_gfl_r50_fpn_1x_coco': (
        'it is called after the class logits, and distils the neck with weight 10, as its base '
        'does; meant are the logits with weight 5, which the published 41.9 AP belong to',
        dict(cwd=dict(tap='bbox_head.gfl_cls', loss=dict(type='CWDLoss', weight=5.0))),
    )
}


class Translation(NamedTuple):
    """What a recipe is written from.

    Attributes:
        source: The config of mmrazor.
        student: The student.
        teacher: The teacher.
        terms: The terms.
        settings: What the recipe changes in its bases beside the model.
        notes: What is different, or could not be carried over.
    """

    source: Source
    student: Student
    teacher: Teacher
    terms: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    notes: Notes

    @property
    def same(self) -> bool:
        """Whether the recipe computes what the config does."""
        return not any(note.changes for note in self.notes)


def translate(path: str) -> Translation:
    """Translate a config of mmrazor.

    Args:
        path: Where it lies.

    Raises:
        NotFoundError: If it, or a config that it names, does not exist.
        RequestError: If there is nothing of it that this package can do.
    """
    source, notes = read_source(path), Notes()
    model = source.config.model
    student, teacher = find_student(source, notes), find_teacher(source, notes)
    compare_preprocessing(student, teacher, notes)
    for name, (value, why) in SWITCHES.items():
        if model.get(name, value) != value:
            notes.changed(f'model.{name}={model[name]}', f'left out: {why}')
    settings, stop = kept_settings(plain(source.config.to_dict()), student.base, notes)
    if source.config.get('load_from'):
        notes.changed(
            'load_from',
            'left out: a checkpoint of mmrazor has the student under another name; give the '
            'weights of the student alone',
        )
    if student.load_from is not None:
        settings['load_from'] = student.load_from
    batch_size = (settings.get('train_dataloader') or {}).get('batch_size', 1)
    distiller = model.get('distiller') or {}
    terms = terms_of(distiller, _places(student, teacher, distiller, notes), batch_size, notes)
    if source.path.stem in MEANT:
        text, terms = MEANT[source.path.stem]
        notes.changed('model.distiller', text)
    if not terms:
        raise RequestError(
            '\n'.join([f'{path}: no loss of it can be carried over', *notes.lines()])
        )
    if stop is not None:
        terms = {n: dict(t, schedule=dict(stop=stop, by_epoch=True)) for n, t in terms.items()}
    return Translation(source, student, teacher, terms, changes(settings, student.base), notes)


def _places(
    student: Student, teacher: Teacher, distiller: Mapping[str, Any], notes: Notes
) -> list[Places]:
    """Where taps lie in student and teacher."""
    ours = Config(dict(model=student.model, default_scope=student.base.get('default_scope')))
    found = []
    for whose, recorders, config in (
        ('architecture', 'student_recorders', ours),
        ('teacher', 'teacher_recorders', teacher.config),
    ):
        model = None if config is None else skeleton(config)
        if model is None:
            notes.known(
                f'model.{whose}',
                'could not be built here, so that its taps are carried over unseen: run kd_dense '
                'check where it can',
            )
        records = (distiller.get(recorders) or {}).values()
        sources = (one.get('source') for one in records if type_name(one) == 'ModuleOutputs')
        found.append(Places(model, (source for source in sources if source)))
    return found
