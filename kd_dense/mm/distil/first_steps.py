"""Warnings in the first iterations: of a teacher that cannot teach, of a term off scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from kd_dense.losses import HolisticLoss
from kd_dense.mm.distil.guests import Guest
from kd_dense.mm.distil.rehearsal import alone
from kd_dense.mm.distil.term import Term
from kd_dense.mm.randomness import kept_random_state
from kd_dense.mm.teachers.several import called, has_own_weights

__all__ = ['DROWNS', 'ITERATIONS', 'VANISHES', 'FirstSteps', 'split_losses']

ITERATIONS = 5
# Loss of a term over the task's. Terms that did well had 0.0035 to 54 (docs/check.md).
DROWNS = 600.0
VANISHES = 1e-4
# A teacher whose loss is not below this share of what an untrained student's is has not learnt.
LEARNT = 0.9


class FirstSteps:
    """Watches the first iterations, and then does nothing.

    Nothing that trains is touched, nothing is drawn from the generators of random numbers, and
    processes do not wait for each other. A training that is resumed is not watched.
    """

    def __init__(self) -> None:
        self.student_is_trained = False  # set where weights are loaded into the whole student
        self._seen = 0
        self._teacher_losses: dict[str, Tensor] = {}
        self._shares: dict[str, list[Tensor]] = {}

    def _is_on(self) -> bool:
        """Whether this iteration is watched."""
        if self._seen >= ITERATIONS or not torch.is_grad_enabled():
            return False
        if self._seen == 0 and MessageHub.get_current_instance().get_info('iter', 0):
            self._seen = ITERATIONS  # resumed
        return self._seen < ITERATIONS

    def before(self, student: Any, inputs: Tensor, data_samples: Sequence[Any]) -> None:
        """Compute the own loss of each teacher on the first batch, where it can be compared.

        This comes before the student runs, whose graph would need memory at the same time.

        Args:
            student: The student; its teachers have run on this batch.
            inputs: The student's batch, ``(N, C, H, W)``.
            data_samples: Its samples.
        """
        if self._seen or self.student_is_trained or not self._is_on():
            return
        if any(term.loss.extra_classes for term in student.kd.values()):
            return  # the labels are of classes that the teacher does not know
        for name, guest in student.kd_plan.running.items():
            found = _own_loss(student, guest, inputs, data_samples)
            if found is not None:
                self._teacher_losses[name] = found

    def after(
        self, losses: Mapping[str, Any], terms: Mapping[str, Any], factors: Mapping[str, float]
    ) -> None:
        """Look at the losses of a step.

        Args:
            losses: All losses by their names in the log.
            terms: The terms by name.
            factors: The schedules' factors by term.
        """
        if not self._is_on():
            return
        self._seen += 1
        task, ours = split_losses(losses)
        if self._seen == 1:
            for teacher, value in self._teacher_losses.items():
                _compare(teacher, float(value), float(task.detach()))
            self._teacher_losses = {}
        for name, value in ours.items():
            critic = isinstance(terms[name].loss, HolisticLoss)  # it has learnt nothing yet
            if factors[name] and not critic and not terms[name].shares:
                share = value.detach().abs() / factors[name] / task.detach().abs()
                self._shares.setdefault(name, []).append(share)
        if self._seen == ITERATIONS:
            for name, term in terms.items():
                if factors[name]:
                    _check_measured(name, term)
            for name, shares in self._shares.items():
                _weigh(terms[name], float(torch.stack(shares).median()))
            self._shares = {}


def _own_loss(
    student: nn.Module, guest: Guest, inputs: Tensor, data_samples: Sequence[Any]
) -> Tensor | None:
    """What a teacher's own loss is on a batch; None, where it is not compared."""
    # Losses are not made for half precision; the others have their own time and place.
    model = guest.teacher.exact
    if model is None or guest.teacher.cache is not None or not _comparable(student, model):
        return None
    if not has_own_weights(guest.teacher):
        return None
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), kept_random_state(), alone():
            samples = copy.deepcopy(data_samples)
            batch = guest.preprocess(inputs, samples)
            parameter = next(model.parameters(), None)
            if parameter is not None:  # FSDP may have cast the student's
                batch = batch.to(parameter.dtype)
            return split_losses(model.loss(batch, samples))[0]
    except Exception as error:  # whatever a model raises whose loss is not made for this
        print_log(
            "the teacher's own loss cannot be computed, and is not compared with the "
            f"student's ({type(error).__name__}: {error})",
            logger='current',
        )
        return None
    finally:
        for buffer, value in buffers:  # some losses count what they have seen
            buffer.copy_(value)


def _compare(name: str, teacher: float, student: float) -> None:
    if not student or teacher < LEARNT * student:  # 0 without losses of a task
        return
    print_log(
        f'the loss of the {called(name)} on the first batch, {teacher:.3g}, is not clearly below '
        f'that of the student, {student:.3g}, which has not been trained yet: the teacher has '
        'little to teach on this data. Is it trained, for these classes, and on pictures '
        'preprocessed like these? kd_dense check CONFIG compares their scores',
        logger='current',
        level=30,
    )


def _weigh(term: Term, share: float) -> None:
    if VANISHES <= share <= DROWNS or not math.isfinite(share):  # without losses of a task
        return
    print_log(
        f'term {term.name!r} is {share:.2g} times the losses of the task in the first '
        f'{ITERATIONS} iterations, and '
        + ('leaves them no part in the training' if share > DROWNS else 'has no effect on it')
        + ': check its weights. kd_dense check CONFIG says which would be in scale',
        logger='current',
        level=30,
    )


def _check_measured(name: str, term: Any) -> None:
    """Name a share that has nothing to go by."""
    idle = [part for part, share in term.shares.items() if not float(share.steps)]
    if idle:
        print_log(
            f'term {name!r} has a share ({", ".join(idle)}) of what the losses of the task pull '
            f'at the maps of tap {term.student_tap!r}, and in the first {ITERATIONS} iterations '
            'there was no gradient of these, or none of the term: it stays next to nothing. Tap '
            'what the task uses, or give the loss a weight in place of the share',
            logger='current',
            level=30,
        )


def split_losses(losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum up the losses of the task, and those of each term.

    Args:
        losses: What a model's ``loss()`` returns; what is not a loss by its name is left out.

    Returns:
        The sum of the task's losses, and the sums by term.
    """
    task: list[Tensor] = []
    terms: dict[str, list[Tensor]] = {}
    for name, value in losses.items():
        if 'loss' not in name:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        total = torch.stack([x.mean() for x in values]).sum()
        if name.startswith('loss_kd_'):
            term = name.removeprefix('loss_kd_').partition('.')[0]
            terms.setdefault(term, []).append(total)
        else:
            task.append(total)
    return _sum(task), {k: _sum(v) for k, v in terms.items()}


def _sum(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([*values]).sum() if values else torch.zeros(())


def _comparable(student: Any, teacher: Any) -> bool:
    """Whether both compute their loss in the same way: by the same modules, equally weighted."""
    ours, theirs = _loss_modules(student), _loss_modules(teacher)
    return bool(ours) and ours == theirs and callable(getattr(teacher, 'loss', None))


def _loss_modules(model: nn.Module) -> dict[str, tuple[str, Any]]:
    return {
        name: (type(module).__name__, getattr(module, 'loss_weight', None))
        for name, module in model.named_modules()
        if 'loss' in name.rpartition('.')[2] and not name.startswith('kd.')
    }
