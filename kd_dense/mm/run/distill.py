"""Train a student with a teacher, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from kd_dense.mm.configs import RequestError, distils, read_config
from kd_dense.mm.distil.distilled import Distilled, own_class
from kd_dense.mm.hooks.checkpoint import newest_checkpoint
from kd_dense.mm.presets.choose import Weights
from kd_dense.mm.run.export import export
from kd_dense.mm.run.recipes import DEFAULT, read_recipe, set_work_dir, teacher_spec, write_recipe
from kd_dense.mm.run.train import train
from kd_dense.mm.run.unlabelled import add_pictures
from kd_dense.mm.teachers.foreign import ForeignModel, check_fields

__all__ = ['Outcome', 'distill']

Source = str | os.PathLike[str]


class Outcome(NamedTuple):
    """What a training has made.

    Attributes:
        scores: Of the validation after the last iteration, by name; empty where the config has
            none.
        student: A checkpoint of the student alone, for its own config.
        work_dir: Where logs and checkpoints are.
    """

    scores: dict[str, float]
    student: Path
    work_dir: Path


def distill(
    student: Source | nn.Module,
    teacher: Source | Mapping[str, Any] | nn.Module | None = None,
    methods: str | Sequence[str] = (),
    *,
    config: Source | None = None,
    teacher_checkpoint: Source | None = None,
    weights: Weights = 'auto',
    unlabelled: Source | None = None,
    labels: bool = True,
    work_dir: Source | None = None,
    options: Mapping[str, Any] | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: bool | Source = False,
    launcher: str = 'none',
    dump_config: Source | None = None,
) -> Outcome:
    """Train a student that learns from a teacher, and write it as a checkpoint of its own.

    This is what ``kd_dense train`` and ``kd_dense export`` do. Hooks, schedules, data and
    evaluation are those of the student's config.

    Args:
        student: Config of the student, or a recipe, which needs no teacher: a path, or a name as
            ``'mmdet::FOLDER/FILE.py'``; or a model that has been built, which starts from the
            weights that it has.
        teacher: Config of the teacher: a path or a name; or a model with its weights; or what
            else [`kd_dense.mm.teachers.guest.Teacher`][] takes, as
            ``dict(type='timm', model=...)`` or ``dict(module=NET, mean=..., std=...)``.
        methods: One or several presets, as ``'fgd'``; with a teacher alone it is ``'auto'``, what
            made the best students in our study.
        config: Where the student is a model, the config of data, schedule and evaluation.
        teacher_checkpoint: Its weights, a path or an address; by default those published with
            its config; ``'none'`` for an untrained teacher, to try things out.
        weights: Of the presets: ``'published'``, ``'shares'`` that set themselves, or ``'auto'``:
            see [`kd_dense.mm.presets.choose.choose_preset`][].
        unlabelled: A folder of pictures without labels, or a file with a path on each line: as
            many of them are added to each batch as it has with labels.
        labels: Whether pictures with labels are trained on at all.
        work_dir: Where logs and checkpoints go.
        options: Settings to override, as ``{'train_cfg.max_epochs': 6}``.
        amp: Train in mixed precision.
        auto_scale_lr: Scale the learning rate to the batch size, as the config says.
        resume: Go on from this checkpoint; with True from the newest one of the work directory.
        launcher: Who started the processes: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        dump_config: A file that what the presets chose is written to, as a recipe.

    Returns:
        Scores, and the path of the student.

    Raises:
        RequestError: If a file does not exist, or the arguments do not go together.
        ValueError: If anything of teacher and student does not fit.

    Examples:
        >>> distill('student.py', methods='fgd')
        Traceback (most recent call last):
            ...
        kd_dense.mm.configs.RequestError: expected methods together with a teacher, got ['fgd']
    """
    chosen = [methods] if isinstance(methods, str) else [*methods]
    if chosen and teacher is None:
        raise RequestError(f'expected methods together with a teacher, got {chosen}')
    if teacher is not None and not chosen:
        chosen = [*DEFAULT]
    if isinstance(teacher, Mapping) and isinstance(teacher.get('module'), nn.Module):
        check_fields(teacher)
        teacher = ForeignModel(**teacher)
    if unlabelled is None and not labels:
        raise RequestError('to train without labels needs pictures: unlabelled=FOLDER')
    if unlabelled is not None and dump_config is not None:
        raise RequestError(
            'dump_config is a recipe on top of the config as it is: leave out unlabelled now, and '
            'give it when you train the recipe'
        )
    build: Callable[[], nn.Module] | None = None
    if isinstance(student, nn.Module) or isinstance(teacher, nn.Module):
        source = config if isinstance(student, nn.Module) else student
        if source is None:
            raise RequestError(
                'a student that is a model needs config=..., for data, schedule and evaluation'
            )
        found, build = _with_models(
            student,
            teacher,
            chosen,
            source,
            teacher_checkpoint,
            options,
            weights,
            unlabelled is not None,
        )
        if unlabelled is not None:
            add_pictures(found, unlabelled, labels)
        if dump_config is not None:
            raise RequestError('a model that was built elsewhere cannot be written as a recipe')
    elif config is not None:
        raise RequestError(
            'config is for a student that is a model; the config of this one is its first argument'
        )
    else:
        source = student
        found = read_recipe(
            student, teacher, chosen, teacher_checkpoint, options, weights, unlabelled, labels
        )
        if not distils(found):
            raise RequestError(f'{source} is no recipe: name a teacher and methods')
        if dump_config is not None:
            write_recipe(found, os.fspath(source), teacher is not None, Path(dump_config))
    found.launcher = launcher
    os.environ.setdefault('LOCAL_RANK', '0')
    set_work_dir(found, work_dir, source)
    start = 'auto' if resume is True else os.fspath(resume) if resume else None
    last = _LastScores()
    try:
        runner = train(found, amp, auto_scale_lr, start, build, [last])
        return _outcome(runner, last)
    finally:
        if isinstance(student, nn.Module) and hasattr(student, 'kd_plan'):
            _restore(student)


def _with_models(
    student: Any,
    teacher: Any,
    methods: Sequence[str],
    source: Source,
    teacher_checkpoint: Source | None,
    options: Mapping[str, Any] | None,
    weights: Weights,
    unlabelled: bool,
) -> tuple[Config, Callable[[], nn.Module]]:
    """The config of data and schedule, and what builds the student where one is a model."""
    if teacher is None:
        raise RequestError('a student that is a model needs a teacher and methods')
    if isinstance(teacher, nn.Module) and teacher_checkpoint is not None:
        raise RequestError('a teacher that is a model has its weights: leave out its checkpoint')
    config = read_config(source, options)
    if distils(config):
        raise RequestError(f'{source} is a recipe: give the config of its student')
    guest = (
        teacher if isinstance(teacher, nn.Module) else teacher_spec(teacher, teacher_checkpoint)
    )
    if isinstance(student, nn.Module):
        for module in student.modules():  # or mmengine would initialise it anew
            if hasattr(module, '_is_init'):
                module._is_init = True  # type: ignore[assignment]

    def build() -> nn.Module:
        model: nn.Module = Distilled(
            student if isinstance(student, nn.Module) else config.model,
            guest,
            preset=methods,
            weights=weights,
            data_preprocessor=config.get('data_preprocessor'),
            unlabelled=unlabelled,
        )
        return model

    return config, build


def _restore(student: Any) -> None:
    """Give back a model as it came, but for its weights."""
    student.__class__ = own_class(type(student))
    del student.kd, student.kd_plan


class _LastScores(Hook):
    """Keep the scores of the last validation, and when it was."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}
        self.at = -1

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.scores, self.at = dict(metrics or {}), runner.iter


def _outcome(runner: Any, last: _LastScores) -> Outcome:
    """Evaluate what the last iteration has left, if that was not done, and write the student."""
    if last.at != runner.iter and runner.val_loop is not None:
        runner.val_loop.run()
    if is_main_process():
        newest = newest_checkpoint(runner.work_dir)
        if newest is None:  # its config saves none
            newest = Path(runner.work_dir, 'last.pth')
            torch.save({'state_dict': runner.model.state_dict()}, newest)
        export(newest, Path(runner.work_dir, 'student.pth'))
    barrier()
    return Outcome(last.scores, Path(runner.work_dir, 'student.pth'), Path(runner.work_dir))
