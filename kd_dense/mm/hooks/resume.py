"""The hook that says beforehand why a training cannot go on from a checkpoint."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kd_dense.mm.configs import RequestError

__all__ = ['ResumeHook']


class ResumeHook(Hook):
    """Compare a checkpoint to resume from with the model, before anything is loaded.

    The state of an optimizer fits the parameters that it was made for: not where terms with
    adapters, contexts or critics have come or gone.

    Raises:
        RequestError: If the checkpoint holds no state of a training, or that of a distillation
            with other parameters.
    """

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        remedy = (
            f'; start from its weights alone: load_from={runner._load_from} (--cfg-options) '
            'without --resume'
        )
        if 'message_hub' not in checkpoint:
            raise RequestError(f'{runner._load_from} holds no state of a training{remedy}')
        if any('_fsdp_wrapped_module' in name for name, _ in runner.model.named_modules()):
            return  # its parameters are flat shares of all
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        here = {name for name, _ in model.named_parameters() if name.startswith('kd.')}
        known = {*model.state_dict()}
        there = {name for name in checkpoint['state_dict'] if name.startswith('kd.')}
        problems = []
        if new := here - there:
            problems.append(f'it lacks {_modules(new)}')
        if gone := there - known:
            problems.append(f'the model has no {_modules(gone)}')
        if problems:
            raise RequestError(
                f'cannot resume from {runner._load_from}, which was saved with other terms: '
                f'{" and ".join(problems)}{remedy}'
            )


def _modules(names: set[str]) -> str:
    """The parts of terms that parameters belong to."""
    return ', '.join(sorted({'.'.join(name.split('.')[:3]) for name in names}))
