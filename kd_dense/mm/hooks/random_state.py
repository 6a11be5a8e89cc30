"""Hooks of the training loop."""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_dense.mm.randomness import get_random_state, set_random_state
from kd_dense.registry import HOOKS

__all__ = ['RandomStateHook']

KEY = 'kd_dense_random_state'


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Let a resumed training draw the random numbers that it would have drawn.

    mmengine saves no random state, so that dropout and random augmentation differ after a
    resume. This hook saves the state with each checkpoint and puts it back before the first
    batch is loaded; validation leaves it untouched, as a resumed run does not repeat it.
    Exact with ``num_workers=0`` and checkpoints at the end of an epoch, or at any iteration
    of an iteration-based training. Several processes have a state each; the first saves them
    all, and a training that goes on with another number of processes draws other numbers.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None
        self._of_all: list[dict[str, Any]] = []  # by process, as of the checkpoint being saved

    def before_train(self, runner: Runner) -> None:
        if get_world_size() == 1:
            return
        save = runner.save_checkpoint

        def collect_and_save(*args: Any, **kwargs: Any) -> None:
            # All processes come here, but only the first gets as far as before_save_checkpoint.
            self._of_all = all_gather_object(self._state())
            save(*args, **kwargs)

        runner.save_checkpoint = collect_and_save

    def _state(self) -> dict[str, Any]:
        # A better score saves again while validation still goes on.
        return self._before_val or get_random_state()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self._of_all or [self._state()]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        states = checkpoint.get(KEY, [])
        if isinstance(states, dict):  # saved by a version that knew the first process alone
            states = [states]
        if len(states) == get_world_size():
            self._resumed = states[get_rank()]
        else:
            runner.logger.warning(
                f'The checkpoint holds the random states of {len(states)} processes, and this '
                f'training has {get_world_size()} (0: it was written without RandomStateHook): '
                'dropout and augmentation draw other numbers than without the stop.'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        if self._resumed is None:
            return
        state, self._resumed = self._resumed, None
        batches = getattr(runner.train_loop, 'dataloader_iterator', None)
        if batches is None:
            set_random_state(state)
        else:  # iteration-based: the batches that were seen are skipped first
            runner.train_loop.dataloader_iterator = _Resumed(batches, state, runner.train_loop)

    def before_val(self, runner: Runner) -> None:
        self._before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None


class _Resumed:
    """Stands before the batches until those seen before the stop have been skipped."""

    def __init__(self, batches: Any, state: dict[str, Any], loop: Any) -> None:
        self._batches = batches
        self._state = state
        self._loop = loop
        self._to_skip = int(loop.iter)

    def skip_iter(self, count: int) -> None:
        self._batches.skip_iter(count)
        self._to_skip = 0

    def __next__(self) -> Any:
        if self._to_skip:
            self._to_skip -= 1
            return next(self._batches)
        self._loop.dataloader_iterator = self._batches
        if hasattr(self._batches, '_ensure_iterator'):
            self._batches._ensure_iterator()  # making one draws a random number
        set_random_state(self._state)
        return next(self._batches)
