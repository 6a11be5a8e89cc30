"""Who teaches: one teacher or several, each with its taps; or the student itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.mm.batches.channels import input_channels
from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.batches.targets import Step
from kd_dense.mm.distil.cacheable import check_cache, maps_alone
from kd_dense.mm.distil.shared_rois import with_teacher_on_rois
from kd_dense.mm.distil.term import Term
from kd_dense.mm.distil.unlabelled.parts import Rows
from kd_dense.mm.models.probe import Probe
from kd_dense.mm.teachers.guest import Teacher
from kd_dense.mm.teachers.several import has_own_weights
from kd_dense.mm.wording import spelt
from kd_dense.taps import Taps, near_names

__all__ = [
    'Detached',
    'Guest',
    'check_alike',
    'inherited_from',
    'settle_teachers',
    'taught',
    'together',
]


class Guest:
    """A teacher beside a student, with what the student's terms want of it.

    Args:
        teacher: The teacher.
        found: What its taps yield.
        student: The student, whose batches it is given as it would have preprocessed them.
        terms: The terms by name that learn from it.

    Raises:
        ValueError: If it cannot be given them, or cannot run as its options say.
    """

    def __init__(
        self, teacher: Teacher, found: Probe, student: Any, terms: Mapping[str, Term]
    ) -> None:
        teacher.by_loss = found.by_loss
        teacher.check_taps(found.teacher)
        teacher.only_maps_are_used(maps_alone(terms.values(), found.by_loss))
        if teacher.cache is not None:
            check_cache(student, terms, found.by_loss)
        self.teacher = teacher
        self.taps = Taps(found.teacher)
        self.calls = {tap: one.calls for tap, one in found.teacher.items()}
        channels = input_channels(student), input_channels(teacher.model)
        self.preprocess = Repreprocess(
            student.data_preprocessor, teacher.model.data_preprocessor, channels
        )
        if channels[0] != channels[1]:
            print_log(
                'the images of the student have {} channels, those of the teacher {}: they are '
                'converted for it, between grey and colour'.format(*channels),
                logger='current',
            )

    def run(self, taps: Iterable[str], inputs: Any, data_samples: Any) -> None:
        """Run the teacher on the student's batch, no further than to the last of these taps."""
        batch = self.preprocess, inputs, data_samples
        if self.teacher.cache is not None:
            self.teacher.cache.run(self.teacher, self.taps, self.calls, *batch)
            return
        self.teacher.run(self.taps, {tap: self.calls[tap] for tap in taps}, *batch)

    def wait(self) -> None:
        """Let what follows wait until the teacher has yielded its maps."""
        self.teacher.wait(self.taps)


def taught(step: Step, guests: Sequence[Guest | None], terms: Sequence[Term]) -> Step:
    """A step as it is for terms that learn from the same teachers.

    Args:
        step: What the student has recorded.
        guests: The teachers, which have run; None is the student itself.
        terms: The terms, whose losses take the mean of several or all of them.

    Returns:
        The same with what the taps of the teachers have yielded.
    """
    first = guests[0]
    if first is None:
        return step._replace(teacher=step.student, teacher_taps=Detached(step.student_taps))
    taps: list[Any] = [guest.taps for guest in guests if guest is not None]
    if step.rows is not None:
        taps = [Rows(one, *step.rows) for one in taps]
    maps = taps[0] if len(taps) == 1 else together(taps, terms[0])
    step = step._replace(teacher=first.teacher.model, teacher_taps=maps)
    shared = [term.rois for term in terms if term.rois is not None]
    return with_teacher_on_rois(first.teacher, shared, step)


def inherited_from(guests: Mapping[str, Guest | None], parts: Sequence[str]) -> Teacher | None:
    """The teacher whose weights the student starts from, if it takes over any.

    Raises:
        ValueError: If there is none.
    """
    if not parts:
        return None
    for guest in guests.values():
        if guest is not None and has_own_weights(guest.teacher):
            return guest.teacher
    raise ValueError(
        f'inherit: {list(parts)} start from the weights of a teacher, and there is none but the '
        'student itself or its average: leave it out'
    )


class _OfTaps(Mapping[str, Sequence[Tensor]]):
    """Maps by tap, made of what was recorded when they are asked for."""

    def __init__(self, *recorded: Any) -> None:
        self.recorded = recorded

    def __iter__(self) -> Iterator[str]:
        return iter(self.recorded[0].names)

    def __len__(self) -> int:
        return len(self.recorded[0].names)


class Detached(_OfTaps):
    """The student's own maps, in the place of a teacher's."""

    def __getitem__(self, tap: str) -> list[Tensor]:
        return [x.detach() for x in self.recorded[0][tap]]


class _Mean(_OfTaps):
    """The mean of the maps of several teachers."""

    def __getitem__(self, tap: str) -> list[Tensor]:
        each = zip(*(taps[tap] for taps in self.recorded), strict=True)
        return [torch.stack(maps).mean(0) for maps in each]


class _Joined(_OfTaps):
    """The maps of several teachers, one behind the other."""

    def __getitem__(self, tap: str) -> list[Tensor]:
        each = zip(*(taps[tap] for taps in self.recorded), strict=True)
        return [torch.cat(maps) for maps in each]


def together(recorded: Sequence[Any], term: Term) -> Mapping[str, Sequence[Tensor]]:
    """The maps of several teachers, as a term is given them."""
    return (_Joined if term.loss.of_teachers else _Mean)(*recorded)


def settle_teachers(
    terms: Iterable[Term], teachers: Mapping[str, nn.Module], student: nn.Module
) -> None:
    """Find out for each term which teachers it means.

    Args:
        terms: The terms, as yet without losses.
        teachers: The teachers by name; the student itself may be among them.
        student: The student.

    Raises:
        ValueError: If a term names none of several, or one that is not there; if it compares a
            tap of the student with itself; if no term names a teacher.
    """
    named = ', '.join(map(repr, teachers))
    for term in terms:
        if not term.teachers and len(teachers) > 1:
            raise ValueError(
                f"term {term.name!r}: of several teachers say which, as teacher='NAME' or a list "
                f'of names: there are {named}'
            )
        term.teachers = term.teachers or tuple(teachers)
        for name in term.teachers:
            if name not in teachers:
                raise ValueError(
                    f'term {term.name!r}: there is no teacher {name!r}, '
                    f'{near_names(name, teachers)}'
                )
        term.within = any(teachers[name] is student for name in term.teachers)
        if term.within and len(term.teachers) > 1:
            raise ValueError(
                f'term {term.name!r}: the student itself, a teacher of None, is not averaged '
                'with others: give it a term of its own'
            )
        if term.within and term.student_tap == term.teacher_tap:
            raise ValueError(
                f'term {term.name!r}: without a teacher, tap {term.student_tap!r} is compared '
                "with itself: name two places of it, as tap=dict(student='backbone.layer2', "
                "teacher='backbone.layer4')"
            )
    idle = [name for name in teachers if not any(name in term.teachers for term in terms)]
    if idle:
        raise ValueError(
            f'no term learns from the teacher {idle[0]!r}: name it in one, as '
            f'teacher={idle[0]!r}, or leave it out'
        )


def check_alike(term: Term, found: Mapping[str, Probe]) -> None:
    """Make sure that the maps of several teachers have a mean.

    Args:
        term: A term with its loss.
        found: By the name of each teacher what its taps yield.

    Raises:
        ValueError: If they have none.
    """
    first, *others = term.teachers
    if term.one_teacher and (others or term.within):
        raise ValueError(
            f'term {term.name!r}: {type(term.loss).__name__} asks its teacher for more than maps '
            'here: give it one teacher, and each other one a term of its own'
        )
    if term.loss.of_teachers and not others:
        raise ValueError(
            f'term {term.name!r}: {type(term.loss).__name__} weighs several teachers: name them, '
            "as teacher=['large', 'other']"
        )
    tap = term.paired_tap
    for other in others:
        shapes = [found[name].teacher[tap].shapes for name in (first, other)]
        if found[first].size != found[other].size or shapes[0] != shapes[1]:
            raise ValueError(
                f'term {term.name!r}: a list of teachers is the mean of their maps, which must be '
                f'of one shape: tap {tap!r} yields {spelt(shapes[0])} in {first!r} and '
                f'{spelt(shapes[1])} in {other!r}; give each teacher a term of its own'
            )
    if others and term.of_features:
        print_log(
            f'term {term.name!r}: the mean of the features of several teachers means something '
            'only where their channels do, as of checkpoints of one training; otherwise give each '
            'of them a term of its own, or tap their logits',
            logger='current',
            level=30,
        )
