"""The check of the scores: whether the teacher is better than the student."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Subset

from kd_dense.mm.check.data import in_this_process
from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.check.ranking import SCORES, lower_is_better, main_score, watched
from kd_dense.mm.configs import dicts_in
from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.files.checkpoint import load_weights, read_checkpoint
from kd_dense.mm.teachers.foreign import predicts
from kd_dense.mm.teachers.several import has_own_weights

__all__ = ['check_scores']

# A teacher that is this far behind a trained student on a few pictures is not so by chance.
CLEARLY = 0.9
# What the frameworks' metrics call the files and folders that they write, or empty first.
WRITTEN = ('outfile_prefix', 'outfile_path', 'out_file_path', 'output_dir')

Scores = dict[str, float]


class _Pictures(NamedTuple):
    """Some validation pictures."""

    loader: Any
    images: int
    ends: list[int]  # how many pictures come up to the end of each data set that is concatenated
    metainfo: Any  # what is known of the data


class _Student(NamedTuple):
    """Whom the teacher is compared with."""

    model: Any
    is_trained: bool
    name: str


def check_scores(subject: Subject) -> None:
    """Score teacher and student on some validation pictures, by the config's own metric."""
    teachers = {
        whose: teacher
        for whose, teacher in subject.teachers.items()
        if whose not in subject.unloaded and has_own_weights(teacher)
    }
    for whose in subject.unloaded:
        subject.say(WARNING, f'the {whose} is not scored without its weights')
    for whose in [who for who, one in teachers.items() if not predicts(one.model)]:
        subject.say(OK, f'the {whose} {teachers.pop(whose).name} yields features and has no score')
    if not teachers:
        return
    if not subject.config.get('val_dataloader') or not subject.config.get('val_evaluator'):
        subject.say(WARNING, 'the config has no validation: the teacher is not scored')
        return
    pictures = _some_pictures(subject)
    student = _student(subject)
    found = {}
    try:
        models = {**{who: one.model for who, one in teachers.items()}, 'student': student.model}
        for side, model in models.items():
            found[side] = _score(subject, side, model.to(subject.device), pictures)
        name, lower = _main_score(subject, found)
    except Exception as error:  # a metric that some pictures alone do not do for
        subject.say(
            WARNING,
            f"the config's own metric cannot score {pictures.images} pictures: "
            f'{type(error).__name__}: {error}',
            'score the teacher with kd_dense test TEACHER_CONFIG CHECKPOINT',
        )
        return
    for whose in teachers:
        _compare(subject, whose, student, found, name, lower, pictures.images)


def _compare(
    subject: Subject,
    whose: str,
    student: _Student,
    found: Mapping[str, Scores],
    name: str,
    lower: bool,
    count: int,
) -> None:
    worst = math.inf if lower else 0.0  # COCO's metric gives none where nothing is found
    teacher, other = (found[side].get(name, worst) for side in (whose, 'student'))
    status, rest, remedy = OK, '', ''
    if not _leads(teacher, other, lower):
        far = not student.is_trained or _far(teacher, other, lower)
        status, rest = ERROR if far else WARNING, ': nothing can be learnt from it'
        remedy = 'look at its config, its classes and its preprocessing, and score it on more '
        remedy += 'pictures (--images)'
        if name not in SCORES and not lower:
            hook = 'default_hooks.checkpoint'
            remedy += f'; is lower better here? Then say {hook}.save_best={name} {hook}.rule=less'
    direction = ' (lower is better)' if lower else ''
    subject.say(
        status,
        f'on {count} validation pictures the {whose} has {name} {teacher:.4g}, {student.name} '
        f'{other:.4g}{direction}{rest}',
        remedy,
        metric=name,
        lower_is_better=lower,
        teacher=found[whose],
        student=found['student'],
        images=count,
        student_is_trained=student.is_trained,
    )


def _leads(one: float, other: float, lower: bool) -> bool:
    """Whether a score is better than another one; what is no number is worse than any."""
    if math.isnan(one) or math.isnan(other):
        return not math.isnan(one)
    return one < other if lower else one > other


def _far(one: float, other: float, lower: bool) -> bool:
    """Whether a score that does not lead is far behind."""
    behind = one - other if lower else other - one
    return not behind <= (1 - CLEARLY) * abs(other)


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
    ends = getattr(dataset, 'cumulative_sizes', [len(dataset)])
    indices = list(_spread(ends, min(subject.images, len(dataset))))
    config.dataset = Subset(dataset, indices)
    config.batch_size = min(config.get('batch_size') or 1, len(indices))
    loader = Runner.build_dataloader(config, seed=0)
    ends = [sum(index < end for index in indices) for end in ends]
    metainfo = copy.deepcopy(getattr(dataset, 'metainfo', None))
    for one in metainfo if isinstance(metainfo, list) else [metainfo or {}]:
        if 'cumulative_sizes' in one:
            one['cumulative_sizes'] = ends
    return _Pictures(loader, len(indices), ends, metainfo)


def _spread(ends: Sequence[int], count: int) -> Iterator[int]:
    """About so many entries, evenly spread over each of the concatenated data sets."""
    for start, end in pairwise([0, *ends]):
        size = end - start
        share = min(size, max(1, round(count * size / ends[-1])))
        yield from (start + index * size // share for index in range(share))


def _evaluator(config: Any, folder: str) -> Any:
    """Build it as the Runner does, which takes what is built already.

    Args:
        config: Of the evaluator.
        folder: Takes the files that its metrics write.
    """
    config = copy.deepcopy(config)
    if not isinstance(config, (dict, list)):
        return config
    for part in dicts_in(config):
        for name in WRITTEN:
            if part.get(name):
                part[name] = str(Path(mkdtemp(dir=folder), Path(part[name]).name))
    runner: Any = None  # the method makes no use of it
    return Runner.build_evaluator(runner, config)


@torch.no_grad()
def _score(subject: Subject, side: str, model: Any, pictures: _Pictures) -> Scores:
    was_training, _ = model.training, model.eval()
    ids: list[Any] = []
    with TemporaryDirectory() as folder:
        evaluator = _evaluator(subject.config.val_evaluator, folder)
        evaluator.dataset_meta = pictures.metainfo
        try:
            for batch in pictures.loader:
                samples = model.val_step(batch)
                ids += [sample.metainfo.get('img_id') for sample in samples]
                evaluator.process(samples, batch)
                subject.tell(f'{side}, picture {len(ids)} of {pictures.images}')
        finally:
            model.train(was_training)
        _count_alone(evaluator, ids, pictures.ends)
        scores = evaluator.evaluate(pictures.images)
    return {k: float(v) for k, v in scores.items() if _is_number(v)}


def _count_alone(evaluator: Any, ids: Sequence[Any], ends: Sequence[int]) -> None:
    """Let COCO's metrics count these pictures alone; they would count all others as missed."""
    parts = [ids] * len(evaluator.metrics)
    if hasattr(evaluator, 'dataset_prefixes'):  # a metric for each data set
        parts = [ids[start:end] for start, end in pairwise([0, *ends])]
    for metric, part in zip(evaluator.metrics, parts, strict=False):
        if hasattr(metric, 'img_ids'):
            metric.img_ids = part


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _main_score(subject: Subject, found: Mapping[str, Scores]) -> tuple[str, bool]:
    """Its name, and whether lower is better."""
    known = list(dict.fromkeys(name for scores in found.values() for name in scores))
    if not known:
        raise ValueError('neither teacher nor student has found anything')
    said = watched(subject.config.to_dict(), known)
    name = main_score(known, said) or known[0]
    return name, lower_is_better(name, said)
