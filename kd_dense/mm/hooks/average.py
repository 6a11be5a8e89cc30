"""The hook that lets a teacher that is the student's average follow it."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.teachers.average import AverageTeacher
from kd_dense.registry import HOOKS

__all__ = ['AverageHook']

KEY = 'kd_dense_averages'


@HOOKS.register_module()
class AverageHook(Hook):
    """Move each teacher that is the average of the student, after each step of its optimizer.

    It is saved with each checkpoint, beside the weights of the student and not among them, and
    restored on resume. Gradients that are accumulated over several iterations make one step. The
    hook does nothing where there is no such teacher, see ``docs/teachers.md``. An ``EMAHook``
    beside it has an average of its own, which is what validation and deployment see.

    Raises:
        ValueError: On resume, if the checkpoint lacks the average; if FSDP shards the student.
    """

    def before_train(self, runner: Runner) -> None:
        model = _model(runner)
        sharded = any('_fsdp_wrapped_module' in name for name, _ in model.named_modules())
        if sharded and _averages(model):
            raise ValueError(
                "teacher='ema' averages the weights of a whole student, and FSDP shards them: "
                'train with DDP, or take a teacher with weights of its own'
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        model = _model(runner)
        averages = _averages(model)
        if averages and runner.optim_wrapper.should_update():
            student = bare(model)
            for one in averages.values():
                one.move(student)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        averages = _averages(_model(runner))
        if averages:
            checkpoint[KEY] = {name: one.average.state_dict() for name, one in averages.items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        saved = checkpoint.get(KEY, {})
        for name, one in _averages(_model(runner)).items():
            if name not in saved:
                raise ValueError(
                    f'the checkpoint to resume from has no average of the student ({KEY!r}): it '
                    'was written without AverageHook, or without this teacher; start from its '
                    'weights with load_from and without resume'
                )
            one.average.load_state_dict(saved[name])


def _model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _averages(model: Any) -> dict[str, AverageTeacher]:
    """The teachers that follow the student, by name."""
    plan = getattr(model, 'kd_plan', None)
    guests = {} if plan is None else plan.running
    return {
        name: guest.teacher
        for name, guest in guests.items()
        if isinstance(guest.teacher, AverageTeacher)
    }
