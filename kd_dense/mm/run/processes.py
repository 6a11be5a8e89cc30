"""The Runner of a config, and the processes it runs in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from kd_dense.mm.configs import dicts_in, type_name
from kd_dense.mm.stack.install import score_in_threads

__all__ = ['build_runner', 'leave_group']


def build_runner(config: Config, model: Callable[[], nn.Module] | None = None) -> Any:
    """Build the Runner that a config asks for, in CPU processes where there is no GPU.

    Args:
        config: The config.
        model: Builds a model that takes the place of the config's, once the seed is set.
    """
    if config.launcher == 'pytorch' and not torch.accelerator.is_available():
        _distribute_on_cpu(config)
    if config.get('default_scope') == 'mmrotate':
        score_in_threads()
    kind: Any = RUNNERS.get(config.runner_type) if 'runner_type' in config else Runner
    if model is None:
        return kind.from_cfg(config)
    names = signature(kind.__init__).parameters
    given = {name: config[name] for name in names if name in config}
    return kind(**{**given, 'model': dict(type=model), 'cfg': config})


def _distribute_on_cpu(config: Config) -> None:
    """Do what mmengine leaves out: it selects a GPU before it starts the processes."""
    torch.distributed.init_process_group('gloo')
    wrapper = ConfigDict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    wrapper.update(config.get('model_wrapper_cfg') or {})
    config.model_wrapper_cfg = wrapper
    kinds = ('SyncBN', 'SyncBatchNorm')
    norms = [part for part in dicts_in(config.get('model')) if type_name(part) in kinds]
    for norm in norms:
        norm['type'] = 'BN'
    if norms:
        print_log('SyncBN does not run on CPUs: BN takes its place', level=30)


def leave_group() -> None:
    """End the process group, where there is one, before Python ends.

    Gloo's threads let go of their last tensors when they please. If Python is at its end by then,
    the process aborts ("terminate called without an active exception") after all its work is done.
    The caller must have dropped its Runner, whose model holds the group.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
