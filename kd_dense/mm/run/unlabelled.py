"""From a recipe to one that learns from pictures without labels as well."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from kd_dense.mm.configs import RequestError, distils
from kd_dense.mm.datasets.unlabelled import list_pictures

__all__ = ['add_pictures', 'add_unlabelled', 'mix_in']


def add_unlabelled(config: Config, pictures: str | os.PathLike[str], labels: bool = True) -> None:
    """Let a recipe learn from pictures without labels; arguments as of [`add_pictures`][].

    Raises:
        RequestError: If the config distils nothing, or there are no such pictures.
    """
    if not distils(config):
        raise RequestError(
            'pictures without labels (--unlabelled) want a teacher: name one (--teacher), or give '
            'a recipe'
        )
    add_pictures(config, pictures, labels)
    config.model.unlabelled = True


def add_pictures(config: Config, pictures: str | os.PathLike[str], labels: bool = True) -> None:
    """Add pictures without labels to the training set of a config.

    To each batch as many pictures without labels are added as it has with labels: those with
    labels, and what the schedule makes of them, stay as they are.

    Args:
        config: It is changed; its model is not.
        pictures: A folder, or a file with a path on each line.
        labels: Whether those with labels are trained on at all. Where they are not, validation is
            left out if its pictures are not there.

    Raises:
        RequestError: If there are no such pictures.
    """
    try:
        count = len(list_pictures(pictures))
    except (OSError, ValueError) as error:
        raise RequestError(str(error)) from error
    loader = config.train_dataloader
    if not labels:
        loader.dataset = dict(
            type='kd_dense.Unlabelled', pictures=os.fspath(pictures), like=loader.dataset
        )
        loader.pop('batch_sampler', None)
        print_log(
            f'{count} pictures without labels: the student learns from the teacher alone',
            logger='current',
        )
        _leave_out_validation(config)
        return
    mix_in(config, os.fspath(pictures))
    half = loader.batch_size // 2
    print_log(
        f'{count} pictures without labels: {half} of them are added to the {half} of each batch',
        logger='current',
    )


def mix_in(config: Config, pictures: str | Mapping[str, Any]) -> None:
    """Add as many pictures without labels to each batch of a config as it has with labels.

    Args:
        config: Its training set is changed.
        pictures: What [`kd_dense.mm.datasets.unlabelled.Unlabelled`][] takes: a folder, a file, or
            the config of a data set.
    """
    loader = config.train_dataloader
    loader.dataset = dict(type='kd_dense.Unlabelled', pictures=pictures, beside=loader.dataset)
    loader.pop('batch_sampler', None)  # one that groups pictures keeps no ratio
    loader.batch_size *= 2
    loader.sampler = dict(
        type='kd_dense.RatioSampler',
        batch_size=loader.batch_size,
        infinite='max_iters' in config.train_cfg,
    )
    scaling = config.get('auto_scale_lr') or {}
    if 'base_batch_size' in scaling:  # it is about those with labels
        scaling['base_batch_size'] *= 2


def _leave_out_validation(config: Config) -> None:
    """Train without validation where its labels cannot be read."""
    loader: Any = config.get('val_dataloader')
    if not loader:
        return
    try:
        with DefaultScope.overwrite_default_scope(config.get('default_scope')):
            DATASETS.build(loader.dataset)
    except Exception as error:  # whatever a loader raises
        print_log(
            f'there is no validation: its data cannot be read ({type(error).__name__}: {error})',
            logger='current',
            level=30,
        )
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
