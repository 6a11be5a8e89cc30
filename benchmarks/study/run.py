"""One run of the study, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import kd_dense.mm  # noqa: F401
from benchmarks.study.cells import METRICS, ROOT, SEEDS, Cell, cell_of
from benchmarks.study.methods import distillation
from benchmarks.study.results import Results
from kd_dense.mm.check.check import check
from kd_dense.mm.hooks.critic import CriticHook
from kd_dense.mm.run.unlabelled import mix_in

VALIDATIONS = dict(short=1, plateau=6, teacher=2)  # of a training


class Watch(Hook):
    """Notes progress, scores, and the CPU time of training, validation left out."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.cpu = self.started = 0.0
        self.curve: list[tuple[int, float]] = []

    def before_train(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)  # a fifth faster on these processors
        self.started = time.process_time()

    def before_val(self, runner: Runner) -> None:
        self.cpu += time.process_time() - self.started

    def after_val(self, runner: Runner) -> None:
        self.started = time.process_time()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter % 10 == 0:
            (self.cell.folder / 'progress').write_text(str(runner.iter / runner.max_iters))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self.curve.append((runner.iter, score(self.cell, metrics)))


def score(cell: Cell, metrics: Mapping[str, float]) -> float:
    """The metric of a task in percent; without a single detection COCO's has no value."""
    key, scale = METRICS[cell.data.task]
    return round(scale * float(metrics.get(key, 0.0)), 2)


def run(cell: Cell) -> None:
    """Do a run, and write ``result.json`` into its folder."""
    config = read(cell)
    verdict = checked(config, cell) if cell.distils and cell.seed == SEEDS[0] else ''
    runner, watch = Runner.from_cfg(config), Watch(cell)
    runner.register_hook(watch, priority='VERY_LOW')
    if cell.distils:
        runner.register_hook(CriticHook())  # as `kd_dense train` does
    if config.get('load_from'):
        val = score(cell, runner.val())
        iterations = 0
    else:
        runner.train()
        val, iterations = watch.curve[-1][1], cell.iterations
    sizes = [(n, p.numel()) for n, p in runner.model.named_parameters()]
    line = {
        'set': cell.set.partition('-')[0],
        'task': cell.data.task,
        'student': cell.data.student.as_posix(),
        'teacher': cell.data.teacher.as_posix(),
        'method': cell.method,
        'weights': cell.weights,
        'schedule': cell.schedule,
        'control': cell.control,
        'equals': cell.equals,
        'seed': cell.seed,
        'iterations': iterations,
        'teacher_iterations': cell.taught,
        'cpu_s': round(watch.cpu, 1),
        'val': val,
        'test': score(cell, runner.test()),
        'curve': watch.curve,
        'verdict': verdict,
        'parameters': sum(count for name, count in sizes if not name.startswith('kd.')),
        'commit': commit(),
    }
    (cell.folder / 'result.json').write_text(json.dumps(line))


def checked(config: Config, cell: Cell) -> str:
    """What `kd_dense check` says beforehand, with the student trained alone where there is one."""
    alone = replace(cell, method='alone', weights='-').checkpoint
    student = str(alone) if alone.is_file() else None
    found = check(config, batches=2, images=30, student=student)
    return str(next(f.figures['verdict'] for f in found if f.check == 'verdict'))


def check_again(results: Results, sets: Sequence[str], methods: Sequence[str]) -> None:
    """Ask for the verdicts that runs have today."""
    for line in results.lines:
        cell = cell_of(line)
        if not line.get('verdict') or cell.set not in sets or cell.method not in methods:
            continue
        here = not cell.has_teacher or cell.taught_by.checkpoint.is_file()
        if cell.taught != line['teacher_iterations'] or not here:
            print(f'{cell.title}: its teacher is not there')
            continue
        before, line['verdict'] = line['verdict'], checked(read(cell), cell)
        line['checked'] = commit()
        print(f'{cell.title}: {line["verdict"]} (before: {before})')
        results.write()


def read(cell: Cell) -> Config:
    """The config of a run."""
    data = cell.data
    config = Config.fromfile(str(data.teacher if cell.teacher else data.student))
    config.work_dir = str(cell.folder)
    config.randomness.seed = cell.seed
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False  # so that its CPU time counts
    config.train_cfg.max_iters = cell.iterations
    for scheduler in config.param_scheduler:
        for name in ('total_steps', 'T_max'):
            if name in scheduler:
                scheduler[name] = cell.iterations
    config.train_cfg.val_interval = -(-cell.iterations // VALIDATIONS[cell.schedule])
    config.default_hooks.checkpoint.interval = cell.iterations
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    if cell.teacher:
        config.load_from = None if data.weights is None else str(data.weights)
    elif cell.distils:
        config.model = dict(
            type='kd_dense.Distilled',
            student=config.model,
            teacher=_teacher(cell),
            **distillation(cell.method, data, cell.weights),
        )
    if data.whole:
        _hide_labels(config, cell)
    return config


def _teacher(cell: Cell) -> dict[str, Any] | None:
    """What a recipe says of the teacher."""
    if not cell.has_teacher:
        return None
    return dict(
        config=str(cell.data.teacher),
        checkpoint=str(cell.taught_by.checkpoint),
        fuse=True,
        channels_last=True,
    )


def _hide_labels(config: Config, cell: Cell) -> None:
    """Leave labels to some of the training pictures; a method may learn from the others too."""
    whole = config.train_dataloader.dataset
    indices = list(range(0, cell.data.pictures, cell.data.labelled))
    config.train_dataloader.dataset = {**whole, 'indices': indices}
    words = cell.method.split('+')
    if {'pictures', 'pseudo'} & {*words}:
        mix_in(config, whole)
        config.model.unlabelled = True
    if 'pseudo' in words:
        config.model.pseudo = dict(score_thr=0.5)


def commit() -> str:
    """The commit of the code; with a plus where files have changed since."""
    command = ['git', 'describe', '--always', '--dirty=+', '--abbrev=10', '--exclude=*']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
