"""The hook that trains the critics of adversarial distillation losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import Tensor, nn

from kd_dense.losses import HolisticLoss
from kd_dense.mm.finite import Later
from kd_dense.registry import HOOKS

__all__ = ['CriticHook']

KEY = 'kd_dense_critics'
ADAM = dict(type='Adam', lr=4e-4, betas=(0.9, 0.99))


@HOOKS.register_module()
class CriticHook(Hook):
    """Train the critic of every [`kd_dense.losses.HolisticLoss`][] in the model.

    After each step of the student, the critics take one of their own on the maps of the same
    iteration, in float32. Where the student's gradient is accumulated over several iterations,
    so is theirs, and in a distributed training it is averaged over the processes. Their
    optimizer is saved with each checkpoint and restored on resume; their losses are logged as
    ``critic_<term>``. The hook does nothing in a model without such a loss, and nothing for a
    term that its weight or its schedule switches off.

    Args:
        optimizer: Config of one optimizer for all critics. The authors' script has
            ``dict(type='SGD', lr=4e-4, momentum=0.9, weight_decay=5e-4)``.
        power: The learning rate falls to 0 as ``(1 - iteration / iterations) ** power``, with
            0.9 as in the authors' script; 0 keeps it constant.

    Raises:
        FloatingPointError: If a critic's gradient is not finite. It never reaches the optimizer,
            and no checkpoint is written after it; on a GPU the error may come some iterations
            later, so that nothing waits for the answer.
        ValueError: On resume, if the checkpoint lacks the state of the critics' optimizer; if
            FSDP shards a critic.
    """

    def __init__(self, optimizer: Mapping[str, Any] = ADAM, power: float = 0.9) -> None:
        if not power >= 0:
            raise ValueError(f'CriticHook expects power >= 0, got power={power}')
        self._config = optimizer
        self._power = power
        self._losses: dict[str, HolisticLoss] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._resumed: dict[str, Any] | None = None
        self._rates: list[float] = []
        self._finite: Tensor | None = None  # whether all gradients have been so far
        self._answer = Later()
        self._grads: dict[nn.Parameter, Tensor] = {}
        self._share = 1.0

    def before_run(self, runner: Runner) -> None:
        model: Any = runner.model
        if is_model_wrapper(model):
            model = model.module
        self._losses = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, HolisticLoss)
        }
        if self._losses:
            _refuse_shards(self._losses)
            critics = nn.ModuleList(loss.critic for loss in self._losses.values())
            self._optimizer = OPTIMIZERS.build({**self._config, 'params': critics.parameters()})
            self._rates = [group['lr'] for group in self._optimizer.param_groups]
            self._restore()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._optimizer is not None:
            self._require_finite(self._finite)
            checkpoint[KEY] = self._optimizer.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            self._resumed = checkpoint.get(KEY, {})
            self._restore()

    def _restore(self) -> None:
        # The Runner calls before_run and then loads, the FlexibleRunner the other way round.
        if self._optimizer is None or self._resumed is None:
            return
        if not self._resumed:
            raise ValueError(
                f'the checkpoint to resume from has no {KEY!r}: it was written without '
                'CriticHook; start from its weights with load_from and without resume'
            )
        self._optimizer.load_state_dict(self._resumed)
        self._resumed = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._losses:  # before the optimizer wrapper counts this iteration
            self._share = float(runner.optim_wrapper.scale_loss(torch.ones(())))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._optimizer is None:
            return
        for parameter, grad in self._grads.items():
            parameter.grad = grad
        due = {name: loss for name, loss in self._losses.items() if loss.critic_is_due}
        values = {name: loss.critic_backward(self._share) for name, loss in due.items()}
        if runner.optim_wrapper.should_update():
            self._step(self._optimizer, runner.iter / runner.max_iters)
        # Until the next iteration the gradients are kept here: the student's optimizer may
        # know these parameters as well, and would use and clear them.
        parameters = [p for group in self._optimizer.param_groups for p in group['params']]
        self._grads = {p: p.grad for p in parameters if p.grad is not None}
        for parameter in parameters:
            parameter.grad = None
        for name, value in values.items():  # last, because mmengine waits for each figure
            term = name.removeprefix('kd.').partition('.')[0]
            runner.message_hub.update_scalar(f'train/critic_{term}', value)

    def after_train(self, runner: Runner) -> None:
        self._require_finite(self._finite)

    def _step(self, optimizer: torch.optim.Optimizer, done: float) -> None:
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        all_reduce_params(grads, op='mean')
        finite = torch.stack([grad.norm() for grad in grads]).isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        if not self._answer.pending:
            self._answer.send(self._finite)
        self._require_finite(self._answer.receive())
        for grad in grads:  # until the answer is there
            grad.masked_fill_(~finite, 0)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group['lr'] = rate * (1 - done) ** self._power
        optimizer.step()
        optimizer.zero_grad()

    def _require_finite(self, finite: Tensor | None) -> None:
        if finite is not None and not finite:
            raise FloatingPointError(
                f'the gradient of a critic ({", ".join(self._losses)}) is not finite: lower the '
                "learning rate of CriticHook or the loss's gradient_penalty, and look at the "
                'maps of student and teacher'
            )


def _refuse_shards(losses: Mapping[str, HolisticLoss]) -> None:
    for name, loss in losses.items():
        # FSDP leaves a flat share of each weight, or none at all.
        weight = dict(loss.critic.named_parameters()).get('last.weight')
        if weight is None or weight.dim() != 4:
            raise ValueError(
                f'FSDP shards the critic of {name}, which is trained outside of its forward '
                f"pass: leave it whole, as model_wrapper=dict(ignored_modules=['{name}.critic'])"
            )
