"""One summand of the distillation loss: tap, loss, adapters, schedule."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from itertools import cycle
from typing import Any, cast

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from kd_dense.adapters import Adapter
from kd_dense.functional import without_autocast
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
        self.losses = nn.ModuleList()  # one for all maps, or one for each
        self.adapter = adapter
        self.adapters = nn.ModuleList()
        self._config = loss
        try:
            self.schedule = Schedule(
                **{k: v for k, v in (schedule or {}).items() if k != '_scope_'}
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f'term {name!r}: schedule: {error}') from None

    def fit(self, student: Yield, teacher: Yield, num_classes: int | None = None) -> None:
        """Build the loss, and an adapter for each pair of maps that needs one.

        Args:
            student: What the tap yields in the student.
            teacher: What it yields in the teacher.
            num_classes: What a loss is given that has an argument of that name.

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
        self.losses.extend(_build_losses(self.name, self._config, teacher.shapes, num_classes))
        for ours, theirs in zip(student.shapes, teacher.shapes, strict=True):
            self.adapters.append(self._adapter(ours, theirs))
        # A term that is switched off for good must not change training at all: a trainable
        # adapter would take part in gradient clipping, if only with zeros.
        if self.loss.weight == 0:
            self.requires_grad_(False)

    def _adapter(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
        custom = isinstance(self.adapter, Mapping)
        if self.loss.any_channels and not custom and len(student) == len(teacher) == 4:
            teacher = (teacher[0], student[1], *teacher[2:])
        if student == teacher and not custom:
            return nn.Identity()
        shapes = f'the student map has shape {student}, the teacher map {teacher}'
        if not self.loss.adaptable:
            raise ValueError(
                f'term {self.name!r}: {shapes}, and {type(self.loss).__name__} compares maps '
                'of one shape only: student and teacher need heads of the same layout'
            )
        if not self.adapter:
            raise ValueError(
                f'term {self.name!r}: {shapes}, and adapter=False; remove it, or tap where '
                'the shapes agree'
            )
        if len(student) != 4 or len(teacher) != 4:
            raise ValueError(
                f'term {self.name!r}: {shapes}; there is an adapter for maps (N, C, H, W) '
                'only: tap where the shapes agree'
            )
        if not isinstance(self.adapter, Mapping):
            return Adapter(student[1], teacher[1])
        config = {'in_channels': student[1], 'out_channels': teacher[1], **self.adapter}
        built: nn.Module = MODELS.build({'_scope_': 'kd_dense', **config})
        return built

    @property
    def loss(self) -> DistillLoss:
        """The loss, or that of the first map."""
        return cast(DistillLoss, self.losses[0])

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
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        factor: float,
        needs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compare the maps of a step.

        Args:
            student: The student's maps.
            teacher: The teacher's maps.
            factor: The schedule's factor.
            needs: What the loss needs beside them, by name.

        Returns:
            The weighted loss, or each of its parts, summed over the maps, by its name in the
            log.

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
        with without_autocast(student[0]):
            if self.loss.all_maps:
                results = [self.loss(adapted, teacher, **needs)]
            else:
                maps = zip(cycle(self.losses), adapted, teacher, strict=False)
                results = [loss(x, t, **needs) for loss, x, t in maps]
        if not self.loss.parts:
            results = [{'': result} for result in results]
        return {
            self._key(part): factor * torch.stack([r[part] for r in results]).sum()
            for part in self.loss.parts or ('',)
        }

    def idle(self, like: Tensor) -> dict[str, Tensor]:
        """What the term contributes while it is off: zero, in touch with its parameters.

        A parameter without gradient would make DDP wait for it forever.
        """
        zero = like.new_zeros((), dtype=torch.float32)
        for parameter in self.parameters():
            if parameter.requires_grad:
                zero = zero + 0 * parameter.sum()
        return {self._key(part): zero for part in self.loss.parts or ('',)}

    def _key(self, part: str) -> str:
        return f'loss_kd_{self.name}.{part}' if part else f'loss_kd_{self.name}'


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


def _build_losses(
    name: str,
    loss: Mapping[str, Any] | DistillLoss,
    shapes: list[tuple[int, ...]],
    num_classes: int | None,
) -> list[DistillLoss]:
    """The loss for all maps; or, where it is made for maps of a certain width, one for each."""
    if not isinstance(loss, Mapping):
        return [_checked(name, loss)]
    kind = loss.get('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if kind is None:
        raise ValueError(f'term {name!r}: the loss has no type: {dict(loss)}')
    if cls is None:
        known = [key for key in MODELS.module_dict if key.endswith('Loss')]
        raise ValueError(f'term {name!r}: there is no loss {kind!r}, {near_names(kind, known)}')
    takes = signature(cls).parameters.keys() - loss.keys()
    config: dict[str, Any] = {'_scope_': 'kd_dense', **loss}
    if 'num_classes' in takes and num_classes is not None:
        config['num_classes'] = num_classes
    configs = [config]
    if 'channels' in takes:
        configs = [{**config, 'channels': shape[1]} for shape in shapes]
    try:
        return [_checked(name, MODELS.build(config)) for config in configs]
    except (TypeError, ValueError) as error:
        raise ValueError(f'term {name!r}: {error}') from error


def _checked(name: str, loss: Any) -> DistillLoss:
    if not isinstance(loss, DistillLoss):
        raise TypeError(
            f'term {name!r}: expected a subclass of kd_dense.losses.DistillLoss, '
            f'got {type(loss).__name__}'
        )
    return loss
