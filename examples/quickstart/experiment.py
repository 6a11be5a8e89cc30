"""What is compared: the jobs, their order, and the start weights that they share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.quickstart.jobs import CHECKPOINTS, CONFIGS, LONGER, TITLES, Job, methods_of
from examples.quickstart.queue import Queue

# Both in trainings of a student.
COST = {
    'teacher': 0.2,
    'student': 1.0,
    **dict.fromkeys(TITLES, 1.5),
    **{f'{LONGER} {method}': 1.4 for method in TITLES},
}
COST_TRAINED = {'teacher': 7.0, 'backbone_teacher': 4.0, 'backbone_student': 2.0}

Results = dict[str, dict[str, list[dict[str, Any]]]]


def compare(args: argparse.Namespace) -> Results:
    """Run everything that is asked for.

    Args:
        args: The options of the command line.

    Returns:
        Results by task and model, one for each seed.
    """
    queue = Queue(args.processes, round(_cost(args)))
    results: Results = {task: {} for task in args.tasks}
    with queue.bars:
        weights = from_scratch(queue, args) if args.from_scratch else CHECKPOINTS
        _run(queue, _same_schedule(args, weights), results)
        _run(queue, _same_cpu_time(args, weights, results), results)
    return results


def _cost(args: argparse.Namespace) -> float:
    trained = {'seg': COST_TRAINED['teacher'], 'det': sum(COST_TRAINED.values())}
    total = sum(trained[task] for task in args.tasks) if args.from_scratch else 0.0
    for task in args.tasks:
        methods = methods_of(task, args.methods)
        models = ['student', *methods, *(f'{LONGER} {method}' for method in methods)]
        total += COST['teacher'] + args.seeds * sum(COST[model] for model in models)
    return total


def _run(queue: Queue, jobs: Sequence[Job], results: Results) -> None:
    for job, result in zip(jobs, queue.run(jobs, COST), strict=True):
        results[job.task].setdefault(job.model, []).append(result)


def _same_schedule(args: argparse.Namespace, weights: Path) -> list[Job]:
    """The teachers, tested; the students alone, and with each method."""
    teachers = [
        _job(args, weights, task, 'teacher', checkpoint=weights / f'{task}_teacher.pth')
        for task in args.tasks
    ]
    students = [
        _job(args, weights, task, model, seed=seed, iterations=args.iterations)
        for seed in range(args.seeds)
        for task in args.tasks
        for model in ('student', *methods_of(task, args.methods))
    ]
    return teachers + students


def _same_cpu_time(args: argparse.Namespace, weights: Path, results: Results) -> list[Job]:
    """The students alone, for as long as each method took."""
    jobs = []
    for task in args.tasks:
        alone = results[task]['student']
        pace = mean(run['cpu_per_iteration'] for run in alone)
        for method in methods_of(task, args.methods):
            pairs = zip(alone, results[task][method], strict=True)
            extra = mean(b['cpu_seconds'] - a['cpu_seconds'] for a, b in pairs)
            iterations = alone[0]['iterations'] + max(round(extra / pace / 10) * 10, 0)
            jobs += [
                _job(args, weights, task, f'{LONGER} {method}', seed=seed, iterations=iterations)
                for seed in range(args.seeds)
            ]
    return jobs


def _job(
    args: argparse.Namespace, weights: Path, task: str, model: str, seed: int = 0, **others: Any
) -> Job:
    config = CONFIGS / f'{task}_{model.partition(" ")[0]}.py'
    folder = args.work_dir / f'{task}_{model.replace(" ", "_")}_seed{seed}'
    options = {} if weights == CHECKPOINTS else _start_from(weights, task, model)
    return Job(task, model, config, folder, seed, options=options, **others)


def _start_from(weights: Path, task: str, model: str) -> dict[str, str]:
    """Options of a config that name other weights than the committed ones."""
    options = {}
    if task == 'det' and model != 'teacher':
        student = 'model.student' if model in TITLES else 'model'
        backbone = f'{student}.backbone.init_cfg.checkpoint'
        options[backbone] = str(weights / 'backbone_student.pth')
    if model in TITLES:
        options['model.teacher.checkpoint'] = str(weights / f'{task}_teacher.pth')
    return options


def from_scratch(queue: Queue, args: argparse.Namespace) -> Path:
    """Train what is committed as checkpoints, and write it in the same form.

    Args:
        queue: What runs the trainings.
        args: The options of the command line.

    Returns:
        The folder of the checkpoints.
    """
    out: Path = args.work_dir / 'checkpoints'
    out.mkdir(parents=True, exist_ok=True)

    def job(task: str, model: str, **options: str) -> Job:
        name = _name(task, model)
        folder, config = args.work_dir / f'{name}_trained', CONFIGS / f'{name}.py'
        return Job(task, model, config, folder, iterations=args.iterations, options=options)

    jobs = [job('seg', 'teacher')] if 'seg' in args.tasks else []
    if 'det' in args.tasks:
        jobs += [job('seg', 'backbone_teacher'), job('seg', 'backbone_student')]
    _train(queue, jobs, out)
    if 'det' in args.tasks:
        backbone = {'model.backbone.init_cfg.checkpoint': str(out / 'backbone_teacher.pth')}
        _train(queue, [job('det', 'teacher', **backbone)], out)
    return out


def _name(task: str, model: str) -> str:
    return model if model.startswith('backbone') else f'{task}_{model}'


def _train(queue: Queue, jobs: Sequence[Job], out: Path) -> None:
    for job, result in zip(jobs, queue.run(jobs, COST_TRAINED), strict=True):
        save_half(result, out / f'{_name(job.task, job.model)}.pth')


def save_half(result: Mapping[str, Any], target: Path) -> None:
    """Write the weights of a run in half precision, as they are committed.

    Args:
        result: Of the run.
        target: The file.
    """
    import torch

    from kd_dense.mm.files.checkpoint import read_checkpoint

    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in read_checkpoint(result['checkpoint']).items()
    }
    torch.save({'state_dict': weights, 'meta': {'config': result['spec']['config']}}, target)
