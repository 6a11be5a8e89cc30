"""The check of the scores: whether the teacher is better than the student."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Subset

from kd_dense.mm.check.data import in_this_process
from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.files.checkpoint import load_weights, read_checkpoint

__all__ = ['check_scores']

# A teacher that is this far behind a trained student on a few pictures is not so by chance.
CLEARLY = 0.9
# What tells most about a model, if there are several scores; the greater the better.
SCORES = ('coco/bbox_mAP', 'mIoU', 'coco/segm_mAP', 'pascal_voc/mAP', 'lvis/bbox_AP')

Scores = dict[str, float]


class _Pictures(NamedTuple):
    """Some validation pictures."""

    loader: Any
    images: int
    metainfo: Any  # what is known of the data


class _Student(NamedTuple):
    """Whom the teacher is compared with."""

    model: Any
    is_trained: bool
    name: str


def check_scores(subject: Subject) -> None:
    """Score teacher and student on some validation pictures, by the config's own metric."""
    if not subject.teacher_is_loaded:
        subject.say(WARNING, 'the teacher is not scored without its weights')
        return
    if not subject.config.get('val_dataloader') or not subject.config.get('val_evaluator'):
        subject.say(WARNING, 'the config has no validation: the teacher is not scored')
        return
    pictures = _some_pictures(subject)
    student = _student(subject)
    found = {}
    try:
        for side, model in {'teacher': subject.teacher.model, 'student': student.model}.items():
            found[side] = _score(subject, side, model.to(subject.device), pictures)
        name = _main_score(subject, found)
    except Exception as error:  # a metric that some pictures alone do not do for
        subject.say(
            WARNING,
            f"the config's own metric cannot score {pictures.images} pictures: "
            f'{type(error).__name__}: {error}',
            'score the teacher with kd_dense test TEACHER_CONFIG CHECKPOINT',
        )
        return
    _compare(subject, student, found, name, pictures.images)


def _compare(
    subject: Subject, student: _Student, found: Mapping[str, Scores], name: str, count: int
) -> None:
    teacher, other = (found[side].get(name, 0.0) for side in ('teacher', 'student'))
    far = not student.is_trained or teacher < CLEARLY * other
    status, rest, remedy = OK, '', ''
    if not teacher > other:
        status, rest = ERROR if far else WARNING, ': nothing can be learnt from it'
        remedy = 'look at its config, its classes and its preprocessing, and score it on more '
        remedy += 'pictures (--images)'
    subject.say(
        status,
        f'on {count} validation pictures the teacher has {name} {teacher:.4g}, {student.name} '
        f'{other:.4g}{rest}',
        remedy,
        metric=name,
        teacher=found['teacher'],
        student=found['student'],
        images=count,
        student_is_trained=student.is_trained,
    )


def _student(subject: Subject) -> _Student:
    source = subject.student
    if source is None:
        trained = subject.student_is_trained
        name = 'the student as it starts' if trained else 'the untrained student'
        return _Student(subject.model, trained, name)
    model = copy.deepcopy(bare(subject.model))
    # Completely: another model's score would tell nothing.
    load_weights(model, read_checkpoint(source), source)
    return _Student(model, True, f'the student of {source}')


def _some_pictures(subject: Subject) -> _Pictures:
    """Of the validation data, evenly spread."""
    config = in_this_process(subject.config.val_dataloader)
    dataset = config.pop('dataset')
    if isinstance(dataset, Mapping):
        dataset = DATASETS.build(dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    count = min(subject.images, len(dataset))
    indices = [index * len(dataset) // count for index in range(count)]
    config.dataset = Subset(dataset, indices)
    config.batch_size = min(config.get('batch_size') or 1, count)
    loader = Runner.build_dataloader(config, seed=0)
    return _Pictures(loader, count, getattr(dataset, 'metainfo', None))


@torch.no_grad()
def _score(subject: Subject, side: str, model: Any, pictures: _Pictures) -> Scores:
    evaluator = Evaluator(copy.deepcopy(subject.config.val_evaluator))
    evaluator.dataset_meta = pictures.metainfo
    was_training, _ = model.training, model.eval()
    ids, done = [], 0
    try:
        for batch in pictures.loader:
            samples = model.val_step(batch)
            ids += [sample.metainfo.get('img_id') for sample in samples]
            evaluator.process(samples, batch)
            done += len(samples)
            subject.tell(f'{side}, picture {done} of {pictures.images}')
    finally:
        model.train(was_training)
    for metric in evaluator.metrics:
        if hasattr(metric, 'img_ids'):  # COCO's would count all others as missed
            metric.img_ids = ids
    scores = evaluator.evaluate(pictures.images)
    return {k: float(v) for k, v in scores.items() if isinstance(v, Real)}


def _main_score(subject: Subject, found: Mapping[str, Scores]) -> str:
    known = list(dict.fromkeys(name for scores in found.values() for name in scores))
    hook = (subject.config.get('default_hooks') or {}).get('checkpoint') or {}
    for name in (hook.get('save_best'), *SCORES):
        if name in known:
            return str(name)
    if not known:
        raise ValueError('neither teacher nor student has found anything')
    return known[0]
