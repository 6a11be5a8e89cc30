"""Train what a config says, with what distillation and an exact resume need."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from kd_dense.mm.configs import (
    RequestError,
    check_mixed_precision,
    distils,
    has_hook,
    type_name,
    type_of,
)
from kd_dense.mm.hooks.average import AverageHook
from kd_dense.mm.hooks.checkpoint import is_complete, newest_checkpoint, what_remains
from kd_dense.mm.hooks.critic import CriticHook
from kd_dense.mm.hooks.random_state import RandomStateHook
from kd_dense.mm.hooks.resume import ResumeHook
from kd_dense.mm.run.processes import build_runner
from kd_dense.mm.teachers.cached import views_of
from kd_dense.mm.teachers.several import teachers_of

__all__ = ['train']


def train(
    config: Config,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    model: Callable[[], nn.Module] | None = None,
    hooks: Sequence[Hook] = (),
) -> Any:
    """Train a model, distilled or not.

    Args:
        config: The config, with ``work_dir`` and ``launcher``. It is changed.
        amp: Train in mixed precision.
        auto_scale_lr: Scale the learning rate to the batch size, as the config says.
        resume: Go on from this checkpoint, or with ``'auto'`` from the newest complete one of
            the work directory.
        model: Builds a model that takes the place of the config's.
        hooks: Hooks beside the config's.

    Returns:
        The Runner, after the training.

    Raises:
        RequestError: If an option does not go with the config, a checkpoint to go on from does
            not exist or is damaged, or the work directory cannot be written.
        RuntimeError: If a file is missing or the disk is full; says where to go on.
    """
    check_writable(Path(config.work_dir))
    if amp:
        use_mixed_precision(config)
    check_mixed_precision(config.get('optim_wrapper'), config.get('default_scope'))
    if auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            raise RequestError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        config.auto_scale_lr.enable = True
    find_start(config, resume)
    add_hooks(config)
    use_safe_checkpoints(config)
    fix_views(config)

    runner = build_runner(config, model)
    for hook in (ResumeHook(), *hooks):
        runner.register_hook(hook)
    try:
        runner.train()
    except OSError as error:
        reason = str(error).strip().splitlines()[-1]  # the worker's own, where there is one
        if '[Errno' not in reason:
            raise  # one that says itself what to do
        remedy = 'mend this'
        if 'No such file' in reason:
            remedy = f'put the file there (relative paths start in {Path.cwd()})'
        rest = what_remains(config.work_dir, remedy)
        raise RuntimeError(f'the training stopped: {reason}. {rest}') from error
    return runner


def check_writable(folder: Path) -> None:
    """Stop before anything is built where logs and checkpoints could not be written."""
    existing = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    try:
        with TemporaryFile(dir=existing) as file:
            file.write(b'0')
            file.flush()
    except OSError as error:
        raise RequestError(
            f'cannot write to the work directory {folder} ({existing}: {error.strerror}); '
            'choose another with --work-dir'
        ) from error


def use_mixed_precision(config: Config) -> None:
    """Put the optimizer's wrapper for mixed precision where the plain one is."""
    config.optim_wrapper.setdefault('type', 'OptimWrapper')
    kind = type_of(config.optim_wrapper, OPTIM_WRAPPERS, config.get('default_scope'))
    if kind not in (OptimWrapper, AmpOptimWrapper):
        found = type_name(config.optim_wrapper)
        raise RequestError(f'--amp works with the OptimWrapper, the config has {found}')
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def find_start(config: Config, resume: str | None) -> None:
    """Settle which checkpoint a training goes on from, if any.

    Args:
        config: The config; its ``resume`` and ``load_from`` are set.
        resume: A checkpoint, 'auto', or None to do what the config says.
    """
    if not resume and config.get('resume'):
        resume = config.get('load_from') or 'auto'
    if not resume:
        return
    if resume == 'auto':
        newest = newest_checkpoint(config.work_dir)
        if newest is None:
            # A first start has nothing to go on from, and keeps what load_from names.
            print_log(f'{config.work_dir} holds no checkpoint: starting from the beginning')
            config.resume = False
            return
        resume = str(newest)
    elif '://' not in resume and not is_complete(Path(resume).expanduser()):
        what = 'is not complete' if os.path.exists(resume) else 'does not exist'
        raise RequestError(
            f'the checkpoint {resume} {what} (looked in {Path.cwd()}); --resume without a path '
            'takes the newest complete one of the work directory'
        )
    print_log(f'resuming from {resume}')
    config.resume, config.load_from = True, resume


def add_hooks(config: Config) -> None:
    """Add the hooks without which a distilled training is another one.

    Without the first, a resumed training with dropout or augmentation draws other numbers; the
    second trains the critic of an adversarial loss, the third moves a teacher that is the
    student's average; these do nothing where there is none.
    """
    for kind in (RandomStateHook, CriticHook, AverageHook):
        if not has_hook(config, kind):
            hooks = config.get('custom_hooks') or []
            config.custom_hooks = [*hooks, dict(type=f'kd_dense.{kind.__name__}')]


def fix_views(config: Config) -> None:
    """Give the training set the views whose teacher's maps are to be kept, if any are."""
    teachers = teachers_of(config.model.get('teacher')).values() if distils(config) else ()
    caches = [one.get('cache') for one in teachers if isinstance(one, Mapping)]
    views = views_of(cache['views'] for cache in caches if cache and 'views' in cache)
    if views is None:
        return
    loader = config.train_dataloader
    if type_name(loader.dataset) != 'FixedViews':
        fixed = dict(type='kd_dense.FixedViews', views=views, dataset=loader.dataset)
        config.train_dataloader = {**loader, 'dataset': fixed}


def use_safe_checkpoints(config: Config) -> None:
    """Put our hook where mmengine's is, with the same settings."""
    hooks = {
        'checkpoint': dict(type='CheckpointHook', interval=1),  # mmengine's own default
        **(config.get('default_hooks') or {}),
    }
    checkpoint = hooks['checkpoint']
    if checkpoint and type_of(checkpoint, HOOKS, config.get('default_scope')) is CheckpointHook:
        hooks['checkpoint'] = {**checkpoint, 'type': 'kd_dense.SafeCheckpointHook'}
    config.default_hooks = hooks
