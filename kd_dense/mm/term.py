"""One summand of the distillation loss: tap, loss, adapters, schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from kd_dense.adapters import Adapter
from kd_dense.losses import DistillLoss
from kd_dense.mm.probe import Yield
from kd_dense.registry import MODELS
from kd_dense.schedules import Schedule
from kd_dense.taps import TapError, near_names

__all__ = ['Term']

FIELDS = ('tap', 'loss', 'adapter', 'schedule')


class Term(nn.Module):
    """A tap in both models and the loss that compares what they yield.

    Args:
        name: What the log calls it, as ``loss_kd_<name>``.
        tap: A tap, or ``dict(student=..., teacher=...)`` where the names differ.
        loss: Config of a loss, or a loss.
        adapter: ``True`` adds an :class:`~kd_dense.adapters.Adapter` to each map that needs
            one, ``False`` makes a difference of shape an error, and a config builds another
            module, which is given ``in_channels`` and ``out_channels``.
        schedule: Arguments of :class:`~kd_dense.schedules.Schedule`.

    Raises:
        ValueError: If a field is missing, unknown or of the wrong kind.
    """

    def __init__(
        self,
        name: str,
        tap: str | Mapping[str, str] | None = None,
        loss: Mapping[str, Any] | DistillLoss | None = None,
        adapter: bool | Mapping[str, Any] = True,
        schedule: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.name = name
        unknown.pop('_scope_', None)
        if unknown:
            raise ValueError(
                f'term {name!r}: unknown field {next(iter(unknown))!r}, '
                f'{near_names(next(iter(unknown)), FIELDS)}'
            )
        if not tap:
            raise ValueError(f"term {name!r} has no tap: say tap='neck', for example")
        if not loss:
            raise ValueError(
                f"term {name!r} has no loss: say loss=dict(type='CWDLoss'), for example"
            )
        self.student_tap, self.teacher_tap = _tap_names(name, tap)
        self.loss = _build_loss(name, loss)
        self.adapter = adapter
        self.adapters = nn.ModuleList()
        self.teacher_calls = 1
        try:
            self.schedule = Schedule(
                **{k: v for k, v in (schedule or {}).items() if k != '_scope_'}
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f'term {name!r}: schedule: {error}') from None

    def fit(self, student: Yield, teacher: Yield) -> None:
        """Give each pair of maps an adapter where it needs one.

        Args:
            student: What the tap yields in the student.
            teacher: What it yields in the teacher.

        Raises:
            ValueError: If the numbers of maps differ, or shapes differ and cannot be adapted.
        """
        if len(student.shapes) != len(teacher.shapes):
            raise ValueError(
                f'term {self.name!r}: tap {self.student_tap!r} yields {len(student.shapes)} '
                f'maps {student.shapes} in the student and tap {self.teacher_tap!r} '
                f'{len(teacher.shapes)} maps {teacher.shapes} in the teacher; choose among '
                "them with an index, as in 'neck[:4]'"
            )
        self.teacher_calls = teacher.calls
        for ours, theirs in zip(student.shapes, teacher.shapes, strict=True):
            self.adapters.append(self._adapter(ours, theirs))
        # A term that is switched off for good must not change training at all: a trainable
        # adapter would take part in gradient clipping, if only with zeros.
        self.adapters.requires_grad_(self.loss.weight > 0)

    def _adapter(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
        if student == teacher and not isinstance(self.adapter, Mapping):
            return nn.Identity()
        if not self.adapter:
            raise ValueError(
                f'term {self.name!r}: the student map has shape {student}, the teacher map '
                f'{teacher}, and adapter=False; remove it, or tap where the shapes agree'
            )
        if len(student) != 4 or len(teacher) != 4:
            raise ValueError(
                f'term {self.name!r}: the student map has shape {student}, the teacher map '
                f'{teacher}; there is an adapter for maps (N, C, H, W) only: tap where the '
                'shapes agree'
            )
        if not isinstance(self.adapter, Mapping):
            return Adapter(student[1], teacher[1])
        config = {'in_channels': student[1], 'out_channels': teacher[1], **self.adapter}
        built: nn.Module = MODELS.build({'_scope_': 'kd_dense', **config})
        return built

    def factor(self) -> float:
        """The schedule's factor now; 0 means that the term is off in this iteration."""
        if self.loss.weight == 0:
            return 0.0
        if self.schedule.constant:
            return 1.0
        hub = MessageHub.get_current_instance()
        now, end = (hub.get_info(key, None) for key in ('iter', 'max_iters'))
        if now is None or end is None:
            raise RuntimeError(
                f'term {self.name!r} has a schedule, which needs to know the iteration: train '
                "with mmengine's Runner, or keep 'iter' and 'max_iters' in its MessageHub"
            )
        if self.schedule.by_epoch:
            epochs = hub.get_info('max_epochs', 1)
            if epochs == 1:
                raise ValueError(
                    f'term {self.name!r}: schedule: by_epoch=True in a training that does not '
                    'count epochs; give iterations'
                )
            now, end = now * epochs / end, epochs
        return self.schedule.factor(now, end)

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], factor: float
    ) -> dict[str, Tensor]:
        """Compare the maps of a step.

        Args:
            student: The student's maps.
            teacher: The teacher's maps.
            factor: The schedule's factor.

        Returns:
            The weighted loss, summed over the maps, under its name in the log.

        Raises:
            TapError: If the maps are not those that the taps yielded when the model was built.
        """
        if not len(student) == len(teacher) == len(self.adapters):
            raise TapError(
                f'term {self.name!r}: expected {len(self.adapters)} maps, got {len(student)} '
                f'of the student and {len(teacher)} of the teacher'
            )
        adapted = [
            x if isinstance(adapter, nn.Identity) else adapter(x, t.shape[-2:])
            for adapter, x, t in zip(self.adapters, student, teacher, strict=True)
        ]
        with torch.autocast(student[0].device.type, enabled=False):
            losses = [self.loss(x, t) for x, t in zip(adapted, teacher, strict=True)]
        return {f'loss_kd_{self.name}': factor * torch.stack(losses).sum()}

    def idle(self, like: Tensor) -> dict[str, Tensor]:
        """What the term contributes while it is off: zero, in touch with its parameters.

        A parameter without gradient would make DDP wait for it forever.
        """
        zero = like.new_zeros((), dtype=torch.float32)
        for parameter in self.parameters():
            if parameter.requires_grad:
                zero = zero + 0 * parameter.sum()
        return {f'loss_kd_{self.name}': zero}


def _tap_names(name: str, tap: str | Mapping[str, str]) -> tuple[str, str]:
    if isinstance(tap, str):
        return tap, tap
    names = {k: v for k, v in tap.items() if k != '_scope_'}
    if names.keys() != {'student', 'teacher'}:
        raise ValueError(
            f"term {name!r}: expected tap='NAME' or tap=dict(student='NAME', teacher='NAME'), "
            f'got {names}'
        )
    return names['student'], names['teacher']


def _build_loss(name: str, loss: Mapping[str, Any] | DistillLoss) -> DistillLoss:
    if isinstance(loss, Mapping):
        kind = loss.get('type')
        if isinstance(kind, str) and '.' not in kind and MODELS.get(kind) is None:
            known = [key for key in MODELS.module_dict if key.endswith('Loss')]
            raise ValueError(
                f'term {name!r}: there is no loss {kind!r}, {near_names(kind, known)}'
            )
        if kind is None:
            raise ValueError(f'term {name!r}: the loss has no type: {dict(loss)}')
        try:
            loss = MODELS.build({'_scope_': 'kd_dense', **loss})
        except (TypeError, ValueError) as error:
            raise ValueError(f'term {name!r}: {error}') from error
    if not isinstance(loss, DistillLoss):
        raise ValueError(
            f'term {name!r}: expected a subclass of kd_dense.losses.DistillLoss, '
            f'got {type(loss).__name__}'
        )
    return loss
