"""The hook that shows, during training, what student and teacher see in some pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner

from kd_dense.mm.pictures import observe, views
from kd_dense.mm.randomness import kept_random_state
from kd_dense.mm.teachers.foreign import predicts
from kd_dense.mm.teachers.several import called
from kd_dense.registry import HOOKS

__all__ = ['PictureHook']


@HOOKS.register_module()
class PictureHook(Hook):
    """Log pictures of what each model finds, what each loss looks at, and where they differ.

    The same pictures of the validation set are shown before the training, every so often, and
    at its end, by all backends of the visualizer (TensorBoard, local files, and others). Their
    names are ``val<index>_predictions``, ``val<index>_<term>`` and
    ``val<index>_<term>_differences``. Training is not changed by it, bit for bit, nor stopped:
    what cannot be shown is warned about, once, and left out. In a distributed training the first
    process draws, and the others wait for it. A loss is shown as it is without its schedule.

    Args:
        indices: Entries of the validation set.
        interval: Iterations, or epochs, from one time to the next.
        by_epoch: Whether ``interval`` counts epochs.

    Raises:
        ValueError: If an argument is out of range; before the training, if there is no
            validation set or entry, the training counts no epochs where ``interval`` does, the
            model is not distilled, or FSDP shards it.
    """

    # After what else happens in an iteration, so that the weights are those after it.
    priority = 'VERY_LOW'

    def __init__(
        self, indices: Sequence[int] = (0, 1), interval: int = 1000, by_epoch: bool = False
    ) -> None:
        if interval < 1:
            raise ValueError(f'PictureHook expects interval >= 1, got interval={interval}')
        if not indices:
            raise ValueError('PictureHook expects indices of the validation set, as (0, 1)')
        self._indices = tuple(indices)
        self._interval = interval
        self._by_epoch = by_epoch
        self._pictures: dict[int, Any] = {}  # by index: what was read, and the view
        self._teachers: dict[int, Any] = {}  # their predictions, which do not change
        self._first: dict[str, Any] = {}  # where the loss came from at first
        self._told: set[str] = set()  # what could not be shown, and why

    def before_train(self, runner: Runner) -> None:
        model = _bare(runner)
        if not hasattr(model, 'kd_plan'):
            raise ValueError(
                'PictureHook shows what is distilled, and the model is not: expected '
                f"model=dict(type='kd_dense.Distilled', ...), got {type(model).__name__}"
            )
        if any('_fsdp_wrapped_module' in name for name, _ in runner.model.named_modules()):
            raise ValueError(
                'PictureHook cannot run a model alone that FSDP shards: leave it out, and draw '
                'from a checkpoint with kd_dense visualize'
            )
        if runner.val_loop is None:
            raise ValueError(
                'PictureHook shows pictures of the validation set: the config has no '
                'val_dataloader'
            )
        if self._by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                'PictureHook: by_epoch=True in a training that does not count epochs; give '
                'interval in iterations'
            )
        for index in self._indices:
            try:
                views.check_entry(runner.val_loop.dataloader.dataset, index)
            except IndexError as error:
                raise ValueError(f'PictureHook: {error}') from None
        self._read(runner, model)
        if runner.iter == 0:
            self._draw(runner, 0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        due = not self._by_epoch and self.every_n_train_iters(runner, self._interval)
        if due or self.is_last_train_iter(runner):
            self._draw(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        # The last iteration of a training is drawn as such.
        last = runner.iter >= runner.max_iters
        if self._by_epoch and self.every_n_epochs(runner, self._interval) and not last:
            self._draw(runner, runner.iter)

    @contextmanager
    def _shown(self, what: str) -> Iterator[None]:
        """Let nothing that is only to be shown stop the training."""
        try:
            yield
        except Exception as error:  # whatever data, a model or a figure can raise
            reason = f'{type(error).__name__}: {error}'
            if not self._told & {what, reason}:
                print_log(
                    f'PictureHook cannot show {what} ({reason}): the training goes on without',
                    logger='current',
                    level=logging.WARNING,
                )
            self._told |= {what, reason}

    @master_only
    def _read(self, runner: Runner, model: Any) -> None:
        guests = model.kd_plan.running
        for guest in guests.values():
            guest.teacher.load()
        device = next(model.parameters()).device
        dataset = runner.val_loop.dataloader.dataset
        for index in self._indices:
            with self._shown(f'entry {index} of the validation set'), kept_random_state():
                data = views.load(dataset, index)
                view = views.look(model, data, views.class_names(dataset))
                self._pictures[index] = data, view
                # Now, because it may be converted to half precision when it first runs.
                self._teachers[index] = {
                    called(name): observe.predict(guest.teacher.model.to(device), data, view)
                    for name, guest in guests.items()
                    if predicts(guest.teacher.model)
                }

    @master_only
    def _draw(self, runner: Runner, step: int) -> None:
        for index in self._pictures:
            with self._shown(f'the terms of val{index}'), kept_random_state():
                self._draw_picture(runner, index, step)

    def _draw_picture(self, runner: Runner, index: int, step: int) -> None:
        from kd_dense.mm.pictures.canvas import pixels_of
        from kd_dense.mm.pictures.differences import differences, draw_differences
        from kd_dense.mm.pictures.predictions import draw_predictions
        from kd_dense.mm.pictures.terms import draw_term

        def add(name: str, figure: Any) -> None:
            runner.visualizer.add_image(name, pixels_of(figure), step=step)

        model = _bare(runner)
        data, view = self._pictures[index]
        with self._shown(name := f'val{index}_predictions'):
            found = dict(self._teachers.get(index, {}))
            found['student'] = observe.predict(model, data, view)
            add(name, draw_predictions(view, found))
        for term, one in observe.compare(model, data, view)[0].items():
            with self._shown(name := f'val{index}_{term}'):
                add(name, draw_term(view, one))
            with self._shown(name := f'val{index}_{term}_differences'):
                now = differences(one)
                first = self._first.setdefault(name, now)
                both = {'now': now} if now is first else {'first': first, 'now': now}
                add(name, draw_differences(view, both))


def _bare(runner: Runner) -> Any:
    """The model without what distributes it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
