"""One run of the quickstart, in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import kd_dense.mm  # noqa: F401
from examples.quickstart.jobs import score

WARM_UP = 50  # the first iterations cost more, however long the training is


class Watch(Hook):
    """Notes progress, scores and the CPU time of training, validation left out.

    Args:
        task: Whose metric is noted.
        folder: Of the run.
    """

    def __init__(self, task: str, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.cpu = self.started = 0.0
        self.at_warm_up = (0, 0.0)
        self.curve: list[tuple[int, float]] = []

    def before_train(self, runner: Runner) -> None:
        self.started = time.process_time()

    def before_val(self, runner: Runner) -> None:
        self.cpu += time.process_time() - self.started

    def after_val(self, runner: Runner) -> None:
        self.started = time.process_time()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == WARM_UP:
            self.at_warm_up = (WARM_UP, self.cpu + time.process_time() - self.started)
        if runner.iter % 10 == 0:
            (self.folder / 'progress').write_text(str(runner.iter / runner.max_iters))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self.curve.append((runner.iter, score(self.task, metrics)))


def train_and_test(spec: Mapping[str, Any]) -> None:
    """Do a job, and write ``result.json`` into its folder.

    Args:
        spec: What `Job.spec` has returned.
    """
    folder, checkpoint = Path(spec['folder']), spec['checkpoint']
    config = _read(spec)
    iterations = config.train_cfg.max_iters
    runner, watch = Runner.from_cfg(config), Watch(spec['task'], folder)
    runner.register_hook(watch, priority='VERY_LOW')
    if not checkpoint:
        runner.train()
        checkpoint = str(folder / f'iter_{iterations}.pth')
    names = [(n, p.numel()) for n, p in runner.model.named_parameters()]
    warm, cost = watch.at_warm_up
    result = {
        'spec': spec,
        'metric': score(spec['task'], runner.test()),
        'parameters': sum(count for name, count in names if not name.startswith('kd.')),
        'iterations': 0 if spec['checkpoint'] else iterations,
        'cpu_seconds': watch.cpu,
        'cpu_per_iteration': (watch.cpu - cost) / (iterations - warm or 1),
        'curve': watch.curve,
        'checkpoint': checkpoint,
    }
    (folder / 'result.json').write_text(json.dumps(result, indent=1))


def _read(spec: Mapping[str, Any]) -> Config:
    config = Config.fromfile(spec['config'])
    config.merge_from_dict(spec['options'])
    config.work_dir = spec['folder']
    config.randomness.seed = spec['seed']
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False  # so that its CPU time counts
    if spec['iterations'] is not None:
        config.train_cfg.max_iters = spec['iterations']
        config.param_scheduler[0].total_steps = spec['iterations']
    iterations = config.train_cfg.max_iters
    config.train_cfg.val_interval = -(-iterations // 4)
    config.default_hooks.checkpoint.interval = iterations
    config.load_from = spec['checkpoint']
    return config
