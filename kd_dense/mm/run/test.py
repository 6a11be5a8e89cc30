"""Evaluate what a training has made; the teacher is not needed and does not run."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS

from kd_dense.mm.configs import RequestError
from kd_dense.mm.run.processes import build_runner

__all__ = ['show', 'test', 'use_test_time_augmentation']


def test(config: Config, checkpoint: str, out: str | None) -> dict[str, float]:
    """Evaluate a checkpoint.

    Args:
        config: The config, with ``work_dir`` and ``launcher``. It is changed.
        checkpoint: Of a run, or an exported student.
        out: A file, ``.pkl``, that the predictions are written to; None for nowhere.

    Returns:
        The scores by name.
    """
    if out and not out.endswith(('.pkl', '.pickle')):
        raise RequestError(f'--out expects a .pkl file, got {out}')
    config.load_from = checkpoint
    runner = build_runner(config)
    if out:
        # mmdet has a class of its own, which packs masks.
        kind = 'DumpDetResults' if config.get('default_scope') == 'mmdet' else 'DumpResults'
        dump = METRICS.build(dict(type=kind, out_file_path=out))
        runner.test_evaluator.metrics.append(dump)
    scores: dict[str, float] = runner.test()
    return scores


def use_test_time_augmentation(config: Config) -> None:
    """Have several views of each picture predicted and merged, as the config says."""
    if 'tta_model' not in config or 'tta_pipeline' not in config:
        raise RequestError('--tta needs tta_model and tta_pipeline in the config')
    dataset: Any = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = deepcopy(config.tta_pipeline)
    config.model = ConfigDict(**config.tta_model, module=config.model)


def show(config: Config, window: bool, wait: float, folder: str | None) -> None:
    """Have the predictions shown in a window, or written to exactly the folder that was named."""
    hook = (config.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise RequestError('--show and --show-dir need default_hooks.visualization in the config')
    hook.draw, hook.interval = True, 1
    hook.show, hook.wait_time = window, wait
    if folder:
        folder = str(Path(folder).absolute())
        if config.get('default_scope') == 'mmdet':
            hook.test_out_dir = folder  # absolute, or the hook puts it below the run's folder
        else:
            config.visualizer.save_dir = folder
