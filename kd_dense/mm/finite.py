"""Stop a training whose distillation is no longer a number, and say where it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ['FiniteCheck', 'Later']

Maps = Mapping[str, Sequence[Tensor]]


class Later:
    """Brings a tensor from a GPU without waiting for it, one at a time."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    @property
    def pending(self) -> bool:
        """Whether a tensor is on its way."""
        return self._pending is not None

    def send(self, values: Tensor) -> None:
        """Set a tensor on its way, while no other is."""
        if values.device.type != 'cuda':
            self._pending = values, None
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = host, event

    def receive(self) -> Tensor | None:
        """The tensor, once it is there; then it is forgotten."""
        if self._pending is None:
            return None
        values, event = self._pending
        if event is not None and not event.query():
            return None
        self._pending = None
        return values


class FiniteCheck:
    """Looks at the losses of every step and at the maps behind them.

    On a GPU the answer is read one or more steps later, so that nothing waits for it.
    """

    def __init__(self) -> None:
        self._answer = Later()
        self._names: list[str] = []

    def __deepcopy__(self, memo: object) -> FiniteCheck:
        return FiniteCheck()

    def __reduce__(self) -> tuple[type[FiniteCheck], tuple[()]]:
        return FiniteCheck, ()

    def check(self, losses: Mapping[str, Tensor], teacher: Maps, student: Maps) -> None:
        """Check one step.

        Args:
            losses: The weighted losses, scalars, by their names in the log.
            teacher: The teacher's maps by tap.
            student: The student's maps by tap.

        Raises:
            FloatingPointError: If a map or a loss is not finite; the message names the tap or
                the term.
        """
        if not losses:
            return
        if next(iter(losses.values())).device.type != 'cuda':
            values = torch.stack([loss.detach() for loss in losses.values()])
            if not values.isfinite().all():
                _raise_first(*_flags(losses, teacher, student))
            return
        answer = self._answer.receive()
        if answer is not None and not answer.all():
            _raise_first(answer, self._names)
        if not self._answer.pending:
            flags, self._names = _flags(losses, teacher, student)
            self._answer.send(flags)


def _flags(losses: Mapping[str, Tensor], teacher: Maps, student: Maps) -> tuple[Tensor, list[str]]:
    """Whether each map and each loss is finite, causes before effects."""
    named = [
        (f'the teacher map of tap {tap!r} is not finite: check its weights and preprocessing, '
         'and whether it overflows in half precision', x.sum(dtype=torch.float32))
        for tap, recorded in teacher.items()
        for x in recorded
    ] + [
        (f'the student map of tap {tap!r} is not finite, before any term has been computed: lower '
         'the learning rate, clip gradients (optim_wrapper.clip_grad), and check the data and '
         'whether it overflows in half precision', x.detach().sum(dtype=torch.float32))
        for tap, recorded in student.items()
        for x in recorded
    ]  # fmt: skip
    named += [
        (f'the loss of term {name.removeprefix("loss_kd_")!r} is not finite: lower its weight '
         'or the learning rate', value)
        for name, value in losses.items()
    ]  # fmt: skip
    sums = torch.stack([value.detach().float() for _, value in named])
    return sums.isfinite(), [text for text, _ in named]


def _raise_first(flags: Tensor, names: Sequence[str]) -> None:
    for good, name in zip(flags.tolist(), names, strict=True):
        if not good:
            raise FloatingPointError(name)
