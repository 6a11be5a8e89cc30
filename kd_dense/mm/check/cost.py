"""The check of the cost: time and memory of a step, and of the whole training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kd_dense.measure import peak_memory, spread, time_interleaved
from kd_dense.mm.check.finding import OK, Subject
from kd_dense.mm.cost.nested import bytes_of
from kd_dense.mm.cost.steps import Trained, preprocessed
from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.wording import duration

__all__ = ['check_cost']


def check_cost(subject: Subject) -> None:
    """Take steps with and without distillation."""
    steps, note = _steps(subject)
    batch = subject.batches[0]
    calls: dict[str, Callable[[], Any]] = {
        name: partial(_step, one, batch) for name, one in steps.items()
    }
    calls.update(_teachers_alone(subject, batch))
    seconds = time_interleaved(
        calls,
        rounds=2,
        device=subject.device,
        progress=lambda done, total: subject.tell(f'{done} of {total + 1}'),
    )
    medians = {name: spread(seconds[name]).median for name in calls}
    ours, alone = medians['distilled'], medians.get('alone')
    distilled = steps['distilled']
    memory = {
        'student and kd': bytes_of(distilled.model.state_dict()),
        **{who: bytes_of(one.model.state_dict()) for who, one in subject.teachers.items()},
        'optimizer': bytes_of(distilled.optimizer.optimizer.state),
        'a step': peak_memory(calls['distilled'], subject.device),
    }
    each = {whose: medians[whose] for whose in subject.teachers}
    text = f'{ours:.2f} s a step on {subject.device}'
    if len(each) > 1:
        text += f' ({", ".join(f"{whose} {value:.2f} s" for whose, value in each.items())})'
    if alone is not None:
        text += f', {alone:.2f} s without distillation'
    if subject.iterations:
        workers = subject.config.train_dataloader.get('num_workers') or 1
        whole = subject.iterations * max(ours, subject.loading / max(workers, 1))
        text += f': {duration(whole)} for {subject.iterations} iterations, without validation'
    text += advice(subject.device, [x.compiled for x in distilled.model.kd.values()])
    parts = ', '.join(f'{name} {size / 2**20:.0f}' for name, size in memory.items())
    subject.say(
        OK,
        f'{text}; {sum(memory.values()) / 2**20:.0f} MiB of memory ({parts}){note}',
        seconds=ours,
        seconds_alone=alone,
        seconds_of_teachers=each,
        iterations=subject.iterations,
        bytes=memory,
    )


def advice(device: str, compiled: Sequence[bool]) -> str:
    """What would make the losses of terms cheaper on a device, if they are not compiled."""
    if not device.startswith('cuda') or any(compiled):
        return ''
    return '; model.compile_losses=True fuses the steps of the losses, each a launch now'


def _step(trained: Trained, batch: Any) -> None:
    trained.step(preprocessed(trained.model, batch))


def _teachers_alone(subject: Subject, batch: Any) -> dict[str, Callable[[], Any]]:
    """Each teacher up to the last of its taps, by what it is called."""

    def run(guest: Any) -> None:
        guest.run(guest.calls, *preprocessed(subject.model, batch))
        guest.wait()
        guest.taps.clear()

    guests = subject.model.kd_plan.running.values()
    return {
        whose: partial(run, guest) for whose, guest in zip(subject.teachers, guests, strict=True)
    }


def _steps(subject: Subject) -> tuple[dict[str, Trained], str]:
    """The model ready to be trained, with distillation and without, and what is to be noted."""
    model = subject.on_device()
    both = {'distilled': model}
    if subject.has_task:
        both['alone'] = bare(model)
    device = subject.device
    try:
        config = subject.config.optim_wrapper
        return {name: Trained(one, config, device) for name, one in both.items()}, ''
    except Exception as error:  # mixed precision wants a GPU
        note = f'; measured in float32 without the optimizer ({error})'
        return {name: Trained(one, None, device) for name, one in both.items()}, note
