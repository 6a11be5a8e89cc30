"""Steps of a training as mmengine's loop takes them, except that they get nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor

from kd_dense.losses import HolisticLoss
from kd_dense.mm.configs import check_mixed_precision
from kd_dense.mm.distil.term import Term
from kd_dense.mm.hooks.critic import CriticHook
from kd_dense.schedules import Schedule

__all__ = ['Batch', 'Trained', 'build_to_try', 'differentiate_critics', 'preprocessed']


class Batch(NamedTuple):
    """A preprocessed batch: ``(N, 3, H, W)`` and a data sample for each picture."""

    inputs: Tensor
    samples: list[Any]


def preprocessed(model: Any, data: Any) -> Batch:
    """Preprocess a batch as for training; what was loaded stays as it is."""
    found = model.data_preprocessor(deepcopy(data), True)
    return Batch(found['inputs'], found['data_samples'])


def build_to_try(config: Mapping[str, Any]) -> Any:
    """Build a distilled model to try out, without weights.

    All terms have their full weight, whatever their schedules say, and the teacher runs in every
    step; the first iterations are not watched; and there is no SyncBN, which does not run on CPUs,
    nor in one process.

    Args:
        config: Of the model. It is not changed.
    """
    own: Any = ConfigDict(deepcopy(config))  # building changes it
    own.checks = False
    model = revert_sync_batchnorm(MODELS.build(own))
    for guest in model.kd_plan.running.values():
        guest.teacher.every = 1
    for term in model.kd.values():
        term.schedule = Schedule()
    return model


def differentiate_critics(terms: Iterable[Term]) -> None:
    """Take the backward pass of critics that are due, which insist on it, without a step."""
    for term in terms:
        for loss in term.losses:
            if isinstance(loss, HolisticLoss) and loss.critic_is_due:
                loss.critic_backward()
                loss.critic.zero_grad()


class _NoSteps(OptimWrapper):
    """Leaves it at gradients."""

    def step(self, **kwargs: Any) -> None:
        pass


class Trained:
    """A model with its optimizer, ready to take steps of size 0, which all compute the same.

    Args:
        model: The model, distilled or not. It is moved, and put into training mode.
        optim_wrapper: Config of its optimizer; without it gradients are computed, no more.
        device: Where to compute.
    """

    def __init__(
        self, model: Any, optim_wrapper: Mapping[str, Any] | None, device: str = 'cpu'
    ) -> None:
        self.model = model.to(device)
        self.model.train()
        self.optimizer: Any
        if optim_wrapper is None:
            self.optimizer = _NoSteps(torch.optim.SGD(self.model.parameters()))
        else:
            check_mixed_precision(optim_wrapper)
            self.optimizer = build_optim_wrapper(self.model, deepcopy(optim_wrapper))
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0
        self.critic = CriticHook()
        self.runner: Any = SimpleNamespace(
            model=self.model,
            optim_wrapper=self.optimizer,
            message_hub=MessageHub.get_current_instance(),
            iter=0,
            max_iters=1,
        )
        self.critic.before_run(self.runner)

    def context(self) -> AbstractContextManager[Any]:
        """What a forward pass runs under: autocast, if the optimizer's wrapper has it."""
        found: AbstractContextManager[Any] = self.optimizer.optim_context(self.model)
        return found

    def step(self, batch: Batch) -> Tensor:
        """What mmengine's training loop does with a batch; returns the loss."""
        self.critic.before_train_iter(self.runner, 0)
        with self.context():
            losses = self.model(*batch, mode='loss')
        total: Tensor = self.model.parse_losses(losses)[0]
        self.optimizer.update_params(total)
        self.critic.after_train_iter(self.runner, 0)
        return total.detach()
