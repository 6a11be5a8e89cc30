"""Stop a training whose distillation is no longer a number, and say where it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ['FiniteCheck']


class FiniteCheck:
    """Looks at the losses of every step and at the teacher's maps behind them.

    On a GPU the answer is read one or more steps later, so that nothing waits for it.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, list[str], torch.cuda.Event] | None = None

    def __deepcopy__(self, memo: object) -> FiniteCheck:
        return FiniteCheck()

    def __reduce__(self) -> tuple[type[FiniteCheck], tuple[()]]:
        return FiniteCheck, ()

    def check(self, losses: Mapping[str, Tensor], maps: Mapping[str, Sequence[Tensor]]) -> None:
        """Check one step.

        Args:
            losses: The weighted losses, scalars, by their names in the log.
            maps: The teacher's maps by tap.

        Raises:
            FloatingPointError: If a map or a loss is not finite; the message names the tap or
                the term.
        """
        if not losses:
            return
        if next(iter(losses.values())).device.type != 'cuda':
            values = torch.stack([loss.detach() for loss in losses.values()])
            if not values.isfinite().all():
                _raise_first(*_flags(losses, maps))
            return
        self._read()
        if self._pending is None:
            flags, names = _flags(losses, maps)
            host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = host, names, event

    def _read(self) -> None:
        if self._pending is not None and self._pending[2].query():
            flags, names, _ = self._pending
            self._pending = None
            if not flags.all():
                _raise_first(flags, names)


def _flags(
    losses: Mapping[str, Tensor], maps: Mapping[str, Sequence[Tensor]]
) -> tuple[Tensor, list[str]]:
    """Whether each map and each loss is finite, causes before effects."""
    named = [
        (f'the teacher map of tap {tap!r} is not finite: check its weights and preprocessing, '
         'and whether it overflows in half precision', x.sum(dtype=torch.float32))
        for tap, recorded in maps.items()
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
