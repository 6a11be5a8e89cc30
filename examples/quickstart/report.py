"""The table and the pictures of the quickstart."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope

import kd_dense.mm  # noqa: F401
from examples.quickstart.jobs import CONFIGS, LONGER, METRICS, TASKS, TITLES
from kd_dense.mm.files.checkpoint import load_weights, read_checkpoint

matplotlib.use('Agg')
from matplotlib import pyplot as plt

# Told apart by colour-blind people too (Okabe and Ito).
COLORS = {
    'teacher': '#666666',
    'student': '#000000',
    'auto': '#56B4E9',
    'cwd': '#D55E00',
    'skd': '#0072B2',
    'intrakd': '#CC79A7',
    'fgd': '#009E73',
    'ld': '#E69F00',
}
PICTURES = 6


def name_of(model: str) -> str:
    if model in TITLES:
        return f'student + {TITLES[model]}'
    if model.startswith(LONGER):
        return f'student alone, CPU time of {TITLES[method_of(model)]}'
    return {'student': 'student alone'}.get(model, model)


def method_of(model: str) -> str:
    """The method that a run belongs to, by itself or as what it is compared with."""
    return model.removeprefix(LONGER).strip()


def ordered(models: Mapping[str, Any]) -> list[str]:
    """The models of a task, each method followed by what it is compared with."""
    places = ['teacher', 'student', *TITLES]
    return sorted(models, key=lambda model: (places.index(method_of(model)), len(model)))


def bare(model: str) -> str:
    """The config of a model as it is used: without teacher."""
    return 'teacher' if model == 'teacher' else 'student'


class Predictor:
    """A trained model and the pictures of the test split."""

    def __init__(self, task: str, model: str, checkpoint: str) -> None:
        config = Config.fromfile(CONFIGS / f'{task}_{bare(model)}.py')
        self.scope = config.default_scope
        with DefaultScope.overwrite_default_scope(self.scope):
            self.dataset = DATASETS.build(config.test_dataloader.dataset)
            self.model = MODELS.build(config.model)
        load_weights(self.model, read_checkpoint(checkpoint), checkpoint)
        self.model.eval()

    def __call__(self, index: int) -> Any:
        with torch.no_grad(), DefaultScope.overwrite_default_scope(self.scope):
            (sample,) = self.model.test_step(pseudo_collate([self.dataset[index]]))
        return sample


def measure_speed(results: Mapping[str, Any], images: int = 30) -> dict[str, dict[str, float]]:
    """Milliseconds per image and model, on one core; the models take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speed: dict[str, dict[str, float]] = {}
    for task, models in results.items():
        predictors = {m: Predictor(task, m, runs[0]['checkpoint']) for m, runs in models.items()}
        times: dict[str, list[float]] = {model: [] for model in models}
        for index in range(images):
            for model, predictor in predictors.items():
                start = time.perf_counter()
                predictor(index % len(predictor.dataset))
                times[model].append(1000 * (time.perf_counter() - start))
        speed[task] = {model: median(values[3:]) for model, values in times.items()}
    torch.set_num_threads(threads)
    return speed


def write_table(
    folder: Path, results: Mapping[str, Any], speed: Mapping[str, Mapping[str, float]]
) -> str:
    """Write the results as Markdown and return them."""
    lines = []
    for task, models in results.items():
        metric = METRICS[task][1]
        seeds = len(models['student'])
        lines += [
            f'### {TASKS[task].capitalize()} ({seeds} seed{"s" if seeds > 1 else ""}, test split)',
            '',
            f'| model | {metric} | share of the gap closed | parameters '
            '| iterations | CPU s of training | ms per image |',
            '|---|---|---|---|---|---|---|',
        ]
        teacher = models['teacher'][0]['metric']
        alone = mean(run['metric'] for run in models['student'])
        for model in ordered(models):
            runs = models[model]
            values = [run['metric'] for run in runs]
            share = (mean(values) - alone) / (teacher - alone) if teacher > alone else None
            trained = bool(runs[0]['iterations'])
            lines.append(
                f'| {name_of(model)} | {spread(values)} '
                f'| {f"{share:.0%}" if share and model != "teacher" else ""} '
                f'| {runs[0]["parameters"] / 1e6:.2f} M '
                f'| {runs[0]["iterations"] if trained else "committed"} '
                f'| {mean(r["cpu_seconds"] for r in runs):.0f} '.replace('| 0 ', '| ')
                + f'| {speed[task][model]:.1f} |'
            )
        lines.append('')
    text = '\n'.join(lines)
    (folder / 'results.md').write_text(text + '\n')
    return text


def spread(values: Sequence[float]) -> str:
    """Mean, with the standard deviation where there are several."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{mean(values):.1f} ± {stdev(values):.1f}'


def draw(folder: Path, results: Mapping[str, Any]) -> None:
    """Draw the curves of all tasks, and the predictions of each."""
    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4), squeeze=False)
    for axis, (task, models) in zip(axes[0], results.items(), strict=True):
        for model in ordered(models):
            runs, color = models[model], COLORS[method_of(model)]
            if model == 'teacher':
                axis.axhline(runs[0]['metric'], color=color, ls='--', label='teacher (test)')
                continue
            steps = [step for step, _ in runs[0]['curve']]
            values = np.array([[value for _, value in run['curve']] for run in runs])
            style = ':' if model.startswith(LONGER) else 'o-'
            axis.plot(steps, values.mean(0), style, color=color, label=name_of(model), ms=4)
            axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.1, lw=0)
        axis.set(
            xlabel='iteration', ylabel=f'{METRICS[task][1]} on the validation split',
            title=TASKS[task].capitalize(),
        )  # fmt: skip
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        seeds = 'mean and range of the seeds' if len(models['student']) > 1 else None
        axis.legend(loc='lower right', fontsize=7, title=seeds, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / 'curves.png', dpi=120)
    plt.close(figure)
    for task, models in results.items():
        _draw_predictions(folder / f'predictions_{task}.png', task, models)


def _draw_predictions(path: Path, task: str, models: Mapping[str, Any]) -> None:
    shown = [m for m in ordered(models) if not m.startswith(LONGER)]
    predictors = {m: Predictor(task, m, models[m][0]['checkpoint']) for m in shown}
    columns = ['ground truth', *shown]
    figure, axes = plt.subplots(
        PICTURES, len(columns), figsize=(2.1 * len(columns), 2.1 * PICTURES), squeeze=False
    )
    for row in range(PICTURES):
        for axis, column in zip(axes[row], columns, strict=True):
            predictor = predictors[shown[0] if column == 'ground truth' else column]
            data = predictor.dataset[row]
            image = data['inputs'].numpy()[::-1].transpose(1, 2, 0)  # files are read as BGR
            axis.imshow(image)
            sample = data['data_samples'] if column == 'ground truth' else predictor(row)
            paint = _paint_segmentation if task == 'seg' else _paint_boxes
            paint(axis, sample, column == 'ground truth', predictor.dataset.metainfo)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name_of(column), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _paint_segmentation(axis: Any, sample: Any, truth: bool, meta: Mapping[str, Any]) -> None:
    labels = (sample.gt_sem_seg if truth else sample.pred_sem_seg).data[0].numpy()
    palette = np.array([*meta['palette'], *[[255, 255, 255]] * (256 - len(meta['palette']))])
    overlay = np.dstack([palette[labels] / 255, np.where(labels == 10, 0.0, 0.75)])
    axis.imshow(overlay)
    for digit in np.unique(labels[labels < 10]):
        y, x = np.argwhere(labels == digit).mean(0)
        if (labels == digit).sum() >= 30:
            axis.text(x, y, str(digit), ha='center', va='center', weight='bold', fontsize=9)


def _paint_boxes(axis: Any, sample: Any, truth: bool, meta: Mapping[str, Any]) -> None:
    instances = sample.gt_instances if truth else sample.pred_instances
    if not truth:
        instances = instances[instances.scores > 0.3]
    boxes = instances.bboxes
    boxes = getattr(boxes, 'tensor', boxes).tolist()
    for (x1, y1, x2, y2), label in zip(boxes, instances.labels.tolist(), strict=True):
        axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color='#F0E442'))
        axis.text(
            x1 + 1, y1 + 1, meta['classes'][label], va='top', fontsize=9, weight='bold',
            color='black', bbox=dict(facecolor='#F0E442', edgecolor='none', pad=0.8),
        )  # fmt: skip
