"""The teacher that is the running average of the student itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import MomentumAnnealingEMA

from kd_dense.mm.teachers.guest import RUNNING, Teacher
from kd_dense.taps import near_names

__all__ = ['AverageTeacher']

FIELDS = ('type', 'momentum', 'gamma')
# So many batches without a step are no accumulation of gradients, but a hook that is missing.
PATIENCE = 64


class AverageTeacher(Teacher):
    """A teacher whose weights are a running average of the student's (mean teacher).

    After each step of the optimizer ``average = average + m * (student - average)``, with
    ``m = max(momentum, gamma / (gamma + steps))``: in the beginning, when old weights are worth
    little, the average is that of all steps so far. It is mmengine's ``MomentumAnnealingEMA``;
    batch norms have the student's statistics.

    Args:
        student: The student, which is copied.
        momentum: The share of the newest weights. Tarvainen and Valpola (NeurIPS 2017) have 0.001.
        gamma: For how many steps the average is about that of all: ``gamma / momentum``. They have
            1.

    Raises:
        ValueError: If one of them is out of range.
    """

    def __init__(self, student: Any, momentum: float = 0.001, gamma: int = 1) -> None:
        if not (isinstance(momentum, float) and 0 < momentum < 1):
            raise ValueError(
                f"teacher 'ema': expected momentum between 0 and 1, the share of the newest "
                f'weights, got {momentum!r}'
            )
        if not (isinstance(gamma, int) and gamma >= 1):
            raise ValueError(
                f"teacher 'ema': expected gamma as a number of steps, at least 1, got {gamma!r}"
            )
        self.average: Any = MomentumAnnealingEMA(student, momentum=momentum, gamma=gamma)
        self._waited = 0  # batches since the last step
        super().__init__(self.average.module)
        self.name = "the student's running average"

    @classmethod
    def of(cls, student: Any, spec: str | Mapping[str, Any]) -> AverageTeacher:
        """The average that ``'ema'`` or ``dict(type='ema', ...)`` means.

        Raises:
            ValueError: If a field is unknown or has a bad value.
        """
        fields = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != '_scope_'}
        for name in fields.keys() & {*RUNNING}:
            raise ValueError(
                f"teacher 'ema': {name} is for a teacher that stays as it is; the student's "
                f'average changes with each step, and runs as the student does: leave {name} out'
            )
        for name in fields.keys() - {*FIELDS}:
            raise ValueError(f"teacher 'ema': unknown field {name!r}, {near_names(name, FIELDS)}")
        fields.pop('type', None)
        return cls(student, **fields)

    @torch.no_grad()
    def move(self, student: Any) -> None:
        """Follow the student, after a step of its optimizer.

        Args:
            student: Without what distillation has added to it.
        """
        self._waited = 0
        self.average.update_parameters(student)

    def start(self, student: Any) -> None:
        """Begin with the student's weights, unless it has begun; before each batch.

        Args:
            student: Without what distillation has added to it.

        Raises:
            RuntimeError: If it is never moved.
        """
        if self.average.steps == 0:
            self.average.update_parameters(student)
        self._waited += torch.is_grad_enabled()
        if self._waited > PATIENCE:
            raise RuntimeError(
                f'the teacher that is the average of the student has not moved for {PATIENCE} '
                'batches: kd_dense train adds the hook that moves it; with other tools say '
                "custom_hooks=[dict(type='kd_dense.AverageHook')]"
            )
