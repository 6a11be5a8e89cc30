"""Distil small students on Scenes and compare them with themselves, trained alone.

For segmentation and detection: a teacher, the student alone, the student with each method on
the same schedule, and the student alone on a schedule that costs the same CPU time. Every run
is scored on the test split by the stock metrics (mIoU; COCO AP). The table, the curves and the
predictions side by side go to the work directory. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path('configs/quickstart')
CHECKPOINTS = CONFIGS / 'checkpoints'

TASKS = {'seg': 'segmentation', 'det': 'detection'}
METRICS = {'seg': ('mIoU', 'mIoU', 1.0), 'det': ('coco/bbox_mAP', 'AP', 100.0)}
TITLES = {'cwd': 'CWD', 'skd': 'SKD', 'intrakd': 'IntRA-KD', 'fgd': 'FGD', 'ld': 'LD'}
LONGER = 'student longer'
WARM_UP = 50  # the first iterations cost more, however long the training is
FROM_SCRATCH = 20.0  # what the teachers cost, in trainings of a student


@dataclass
class Job:
    """One run: what is trained, if anything, and where its result goes."""

    task: str
    model: str
    config: Path
    folder: Path
    seed: int = 0
    iterations: int | None = None
    checkpoint: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f'{TASKS[self.task]}: {self.model}, seed {self.seed}'

    def spec(self) -> dict[str, Any]:
        """What the result depends on."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    def result(self) -> dict[str, Any] | None:
        """The result of this very job, if it has been run."""
        try:
            found = json.loads((self.folder / 'result.json').read_text())
        except FileNotFoundError:
            return None
        return found if found['spec'] == self.spec() else None

    def progress(self) -> float:
        try:
            return float((self.folder / 'progress').read_text())
        except (FileNotFoundError, ValueError):
            return 0.0


def methods_of(task: str, methods: Sequence[str]) -> list[str]:
    """Those methods that there is a config for; some need boxes, some label maps."""
    return [m for m in methods if (ROOT / CONFIGS / f'{task}_{m}.py').is_file()]


def score(task: str, metrics: Mapping[str, float]) -> float:
    """The metric of a task in percent; without a single detection COCO's has no value."""
    key, _, scale = METRICS[task]
    return scale * float(metrics.get(key, 0.0))


def work(spec: dict[str, Any]) -> None:
    """Train and test one model; runs in a process of its own."""
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

    import kd_dense.mm  # noqa: F401

    folder = Path(spec['folder'])

    @HOOKS.register_module()
    class Watch(Hook):
        """Note progress and the CPU time of training, validation left out."""

        cpu = 0.0
        at_warm_up = (0, 0.0)
        curve: list[tuple[int, float]] = []

        def before_train(self, runner: Runner) -> None:
            self.started = time.process_time()

        def before_val(self, runner: Runner) -> None:
            Watch.cpu += time.process_time() - self.started

        def after_val(self, runner: Runner) -> None:
            self.started = time.process_time()

        def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
            if runner.iter + 1 == WARM_UP:
                spent = Watch.cpu + time.process_time() - self.started
                Watch.at_warm_up = (WARM_UP, spent)
            if runner.iter % 10 == 0:
                (folder / 'progress').write_text(str(runner.iter / runner.max_iters))

        def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
            Watch.curve.append((runner.iter, score(spec['task'], metrics)))

    config = Config.fromfile(spec['config'])
    config.merge_from_dict(spec['options'])
    config.work_dir = str(folder)
    config.randomness.seed = spec['seed']
    hooks = config.get('custom_hooks') or []
    config.custom_hooks = [*hooks, dict(type='Watch', priority='VERY_LOW')]
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False  # so that its CPU time counts
    iterations = spec['iterations']
    if iterations is not None:
        config.train_cfg.max_iters = iterations
        config.param_scheduler[0].total_steps = iterations
    else:
        iterations = config.train_cfg.max_iters
    config.train_cfg.val_interval = -(-iterations // 4)
    config.default_hooks.checkpoint.interval = iterations
    if spec['checkpoint']:
        config.load_from = spec['checkpoint']

    runner = Runner.from_cfg(config)
    checkpoint = spec['checkpoint']
    if not checkpoint:
        runner.train()
        checkpoint = str(folder / f'iter_{iterations}.pth')
    names = [(n, p.numel()) for n, p in runner.model.named_parameters()]
    result = {
        'spec': spec,
        'metric': score(spec['task'], runner.test()),
        'parameters': sum(count for name, count in names if not name.startswith('kd.')),
        'iterations': 0 if spec['checkpoint'] else iterations,
        'cpu_seconds': Watch.cpu,
        'cpu_per_iteration': (Watch.cpu - Watch.at_warm_up[1])
        / (iterations - Watch.at_warm_up[0] or 1),
        'curve': Watch.curve,
        'checkpoint': checkpoint,
    }
    (folder / 'result.json').write_text(json.dumps(result, indent=1))


class Queue:
    """Runs jobs side by side, each on one core, and shows how far they are."""

    def __init__(self, processes: int, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.processes = processes
        self.total = total  # in iterations of a student
        self.finished = 0.0
        self.started = time.monotonic()
        self.bars = Progress(
            TextColumn('{task.description:<46}'),
            BarColumn(24),
            TextColumn('{task.percentage:>3.0f} %'),
            TimeElapsedColumn(),
            TextColumn('{task.fields[left]}'),
            refresh_per_second=2,
        )
        self.overall = self.bars.add_task('[bold]all runs', total=total, left='')
        self.last_line = 0.0

    def run(self, jobs: Sequence[Job], cost: Mapping[str, float]) -> list[dict[str, Any]]:
        """Run jobs that do not depend on each other; return their results in order."""
        waiting = [job for job in jobs if job.result() is None]
        self.finished += sum(cost[job.model] for job in jobs if job not in waiting)
        running: list[tuple[Job, Any, Any]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.processes:
                    job = waiting.pop(0)
                    bar = self.bars.add_task(job.title, total=1.0, left='')
                    running.append((job, self._start(job), bar))
                time.sleep(0.5)
                for entry in list(running):
                    job, process, bar = entry
                    self.bars.update(bar, completed=job.progress())
                    if process.poll() is None:
                        continue
                    running.remove(entry)
                    self.bars.remove_task(bar)
                    self.finished += cost[job.model]
                    self._report(job, process.returncode)
                self._show(
                    self.finished + sum(job.progress() * cost[job.model] for job, *_ in running)
                )
        finally:  # one has failed, or somebody has had enough
            for _, process, _ in running:
                process.terminate()
        return [json.loads((job.folder / 'result.json').read_text()) for job in jobs]

    def _start(self, job: Job) -> Any:
        job.folder.mkdir(parents=True, exist_ok=True)
        for old in ('progress', 'result.json'):
            (job.folder / old).unlink(missing_ok=True)
        with open(job.folder / 'log.txt', 'w') as log:
            return subprocess.Popen(
                [sys.executable, __file__, '--job', json.dumps(job.spec())],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'},
            )

    def _report(self, job: Job, code: int) -> None:
        if code:
            log = job.folder / 'log.txt'
            tail = '\n'.join(log.read_text().splitlines()[-15:])
            self.bars.stop()
            raise SystemExit(f'{job.title} failed:\n{tail}\nThe whole log is in {log}.')
        result = job.result()
        assert result is not None
        name = METRICS[job.task][1]
        self.bars.console.print(f'done: {job.title}: {name} {result["metric"]:.1f}')

    def _show(self, done: float) -> None:
        elapsed = time.monotonic() - self.started
        left = ''
        if done > 0.02 * self.total:
            seconds = elapsed * (self.total - done) / done
            left = f'about {max(seconds, 1) / 60:.1f} min left'
        self.bars.update(self.overall, completed=min(done, self.total), left=left)
        # Without a terminal there are no bars: say a line now and then.
        if not self.bars.console.is_terminal and elapsed - self.last_line > 20:
            self.last_line = elapsed
            print(f'{100 * done / self.total:3.0f} % after {elapsed:.0f} s, {left}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=1, help='how many seeds (default: 1)')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument(
        '--methods', nargs='+', choices=['all', *TITLES], default=['cwd'], help='(default: cwd)'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'))
    parser.add_argument('--data', type=Path, default=Path('data/scenes'), help='where Scenes lie')
    parser.add_argument(
        '--iterations', type=int, help='length of every training (default: as configured)'
    )
    parser.add_argument(
        '--processes', type=int, default=2, help='runs side by side, one core each (default: 2)'
    )
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='train teachers and pretrained backbone too, rather than take the committed ones',
    )
    parser.add_argument('--job', help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.job:
        work(json.loads(args.job))
        return
    if min(args.seeds, args.processes, args.iterations or 1) < 1:
        parser.error('--seeds, --processes and --iterations must be at least 1')
    if 'all' in args.methods:
        args.methods = list(TITLES)
    for task in args.tasks:
        if not methods_of(task, args.methods):
            parser.error(f'none of {", ".join(args.methods)} does {TASKS[task]}: see --tasks')

    from make_scenes import make_scenes

    os.environ['SCENES'] = str(args.data)  # the configs read it
    if not (args.data / 'scenes.json').is_file():
        make_scenes(args.data, progress=True)
    report(args.work_dir, run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything that is asked for; results by task and model, one for each seed."""
    seeds = range(args.seeds)
    total = FROM_SCRATCH if args.from_scratch else 0.0
    for task in args.tasks:
        total += args.seeds * (len(methods_of(task, args.methods)) * 2.9 + 1.0) + 0.2
    queue = Queue(args.processes, round(total))
    results: dict[str, Any] = {task: {} for task in args.tasks}

    def run_jobs(jobs: Sequence[Job], cost: Mapping[str, float]) -> None:
        for job, result in zip(jobs, queue.run(jobs, cost), strict=True):
            results[job.task].setdefault(job.model, []).append(result)

    with queue.bars:
        weights = from_scratch(queue, args) if args.from_scratch else CHECKPOINTS

        def job(task: str, model: str, seed: int = 0, **others: Any) -> Job:
            config = CONFIGS / f'{task}_{model.partition(" ")[0]}.py'
            folder = args.work_dir / f'{task}_{model.replace(" ", "_")}_seed{seed}'
            options = others.pop('options', {})
            if weights != CHECKPOINTS:
                student = 'model.student' if model in TITLES else 'model'
                if task == 'det' and model != 'teacher':
                    backbone = str(weights / 'backbone_student.pth')
                    options[f'{student}.backbone.init_cfg.checkpoint'] = backbone
                if model in TITLES:
                    options['model.teacher.checkpoint'] = str(weights / f'{task}_teacher.pth')
            return Job(task, model, config, folder, seed, options=options, **others)

        run_jobs(
            [job(t, 'teacher', checkpoint=weights / f'{t}_teacher.pth') for t in args.tasks]
            + [
                job(t, m, s, iterations=args.iterations)
                for s in seeds
                for t in args.tasks
                for m in ('student', *methods_of(t, args.methods))
            ],
            cost={'teacher': 0.2, 'student': 1.0, **dict.fromkeys(TITLES, 1.5)},
        )
        longer = []
        for task in args.tasks:
            alone = results[task]['student']
            pace = mean(run['cpu_per_iteration'] for run in alone)
            for method in methods_of(task, args.methods):
                pairs = zip(alone, results[task][method], strict=True)
                extra = mean(b['cpu_seconds'] - a['cpu_seconds'] for a, b in pairs)
                iterations = alone[0]['iterations'] + max(round(extra / pace / 10) * 10, 0)
                name = f'{LONGER} {method}'
                longer += [job(task, name, seed, iterations=iterations) for seed in seeds]
        run_jobs(longer, cost={f'{LONGER} {method}': 1.4 for method in args.methods})
    return results


def from_scratch(queue: Queue, args: argparse.Namespace) -> Path:
    """Train what is committed as checkpoints, and write it in the same form.

    Returns:
        The folder of the checkpoints.
    """
    out: Path = args.work_dir / 'checkpoints'
    out.mkdir(parents=True, exist_ok=True)

    def train(*jobs: Job) -> None:
        cost = {'teacher': 7.0, 'backbone_teacher': 4.0, 'backbone_student': 2.0}
        for job, result in zip(jobs, queue.run(jobs, cost), strict=True):
            name = job.model if job.model.startswith('backbone') else f'{job.task}_{job.model}'
            save_half(Path(result['checkpoint']), out / f'{name}.pth', str(job.config))

    def job(task: str, model: str, **options: Any) -> Job:
        name = model if model.startswith('backbone') else f'{task}_{model}'
        folder = args.work_dir / f'{name}_trained'
        config = CONFIGS / f'{name}.py'
        return Job(task, model, config, folder, iterations=args.iterations, options=options)

    jobs = [job('seg', 'teacher')] if 'seg' in args.tasks else []
    if 'det' in args.tasks:
        jobs += [job('seg', 'backbone_teacher'), job('seg', 'backbone_student')]
    train(*jobs)
    if 'det' in args.tasks:
        backbone = {'model.backbone.init_cfg.checkpoint': str(out / 'backbone_teacher.pth')}
        train(job('det', 'teacher', **backbone))
    return out


def save_half(source: Path, target: Path, config: str) -> None:
    """Write the weights of a run in half precision, as they are committed."""
    import torch

    from kd_dense.mm.checkpoint import read_checkpoint

    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in read_checkpoint(str(source)).items()
    }
    torch.save({'state_dict': weights, 'meta': {'config': config}}, target)


def report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the table and the pictures, and print the table."""
    print('Measuring the speed of the models and drawing ...', flush=True)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the frameworks have much to say, as loading data does
        from mmengine.logging import MMLogger

        from quickstart_report import draw, measure_speed, write_table

        MMLogger.get_instance('quickstart', log_level='ERROR')
        speed = measure_speed(results)
        table = write_table(folder, results, speed)
        draw(folder, results)
    print(table)
    print(f'\nTable and pictures: {folder}/results.md, {folder}/curves.png, '
          f'{folder}/predictions_*.png')  # fmt: skip


if __name__ == '__main__':
    main()
