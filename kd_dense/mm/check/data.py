"""The check of the training data, and how data is read here."""

from __future__ import annotations

import copy
import time
from itertools import islice
from typing import Any

from mmengine.runner import Runner

from kd_dense.mm.check.finding import OK, Subject
from kd_dense.mm.datasets.unlabelled import labelled_pictures

__all__ = ['check_data', 'in_this_process']


def check_data(subject: Subject) -> None:
    """Load some batches, and say how many there are and how long that takes."""
    config = subject.config
    loader = Runner.build_dataloader(in_this_process(config.train_dataloader), seed=0)
    loop = config.get('train_cfg') or {}
    epochs = loop.get('max_epochs')
    subject.iterations = loop.get('max_iters') or (epochs and epochs * len(loader))
    start = time.perf_counter()
    batches = list(islice(loader, subject.count))
    if not batches:
        raise ValueError('the training data has not one batch')
    subject.batches = batches
    subject.loading = (time.perf_counter() - start) / len(batches)
    unlabelled = labelled_pictures(loader.dataset).count(False)
    subject.say(
        OK,
        f'{len(loader.dataset)} training pictures, '
        + f'{unlabelled} of them without labels, ' * bool(unlabelled)
        + f'{config.train_dataloader.get("batch_size", "?")} in a batch, '
        f'{subject.iterations or "?"} iterations; {subject.loading:.2f} s to load a batch in one '
        'process',
        pictures=len(loader.dataset),
        unlabelled=unlabelled,
        iterations=subject.iterations,
        seconds=subject.loading,
    )


def in_this_process(loader: Any) -> Any:
    """A dataloader's config without worker processes."""
    loader = copy.deepcopy(loader)
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    return loader
