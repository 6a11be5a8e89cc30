"""Evaluate what a training has made; the teacher is not needed and does not run."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import METRICS

from kd_dense.mm.configs import RequestError, alone, distils, framework
from kd_dense.mm.run.processes import build_runner

__all__ = ['show', 'test']


def test(config: Config, checkpoint: str, out: str | None, augmented: bool) -> dict[str, float]:
    """Evaluate a checkpoint.

    Of a recipe, the student alone is built: no file of its teacher is read.

    Args:
        config: The config, with ``work_dir`` and ``launcher``. It may be changed.
        checkpoint: Of a run, or an exported student.
        out: A file, ``.pkl``, that the predictions are written to; None for nowhere.
        augmented: Whether several views of each picture are predicted and merged, as the config
            says.

    Returns:
        The scores by name.
    """
    if out and not out.endswith(('.pkl', '.pickle')):
        raise RequestError(f'--out expects a .pkl file, got {out}')
    hooks = [_StudentAlone()] if distils(config) else []
    config = alone(config)
    package = framework(config)
    if augmented:
        _use_test_time_augmentation(config)
    config.load_from, config.resume = checkpoint, False
    runner = build_runner(config)
    runner.register_custom_hooks(hooks)
    if out:
        # mmdet has a class of its own, which packs masks.
        kind = 'mmdet.DumpDetResults' if package == 'mmdet' else 'DumpResults'
        dump = METRICS.build(dict(type=kind, out_file_path=out))
        runner.test_evaluator.metrics.append(dump)
    scores: dict[str, float] = runner.test()
    return scores


class _StudentAlone(Hook):
    """Leave out of a checkpoint what distillation has added, before another hook uses it."""

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get('state_dict', checkpoint)
        for name in [*state]:
            if name.removeprefix('module.').startswith('kd.'):
                del state[name]


def _use_test_time_augmentation(config: Config) -> None:
    if 'tta_model' not in config or 'tta_pipeline' not in config:
        raise RequestError('--tta needs tta_model and tta_pipeline in the config')
    dataset: Any = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = deepcopy(config.tta_pipeline)
    model, config.model = config.model, config.tta_model
    config.model.module = model


def show(config: Config, window: bool, wait: float, folder: str | None) -> None:
    """Have the predictions shown in a window, or written to exactly the folder that was named."""
    hook = (config.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise RequestError('--show and --show-dir need default_hooks.visualization in the config')
    hook.draw, hook.interval = True, 1
    hook.show, hook.wait_time = window, wait
    if folder:
        folder = str(Path(folder).absolute())
        if framework(config) == 'mmdet':
            hook.test_out_dir = folder  # absolute, or the hook puts it below the run's folder
        else:
            config.visualizer.save_dir = folder
