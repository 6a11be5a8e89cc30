"""A term whose student is what the teacher's head makes of the student's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from kd_dense.mm.batches.targets import Step
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.towers import RestOfHead, find_tower

__all__ = ['CrossTerm']


class CrossTerm(Term):
    """Cross-head distillation: the student's features go through the rest of the teacher's head.

    What comes out of some convolutions of the student's towers is given the mean and spread of the
    teacher's channels, and goes on through the remaining layers of the teacher's head, which are
    frozen and let the gradient pass. The loss compares what comes out with what the teacher's head
    predicts by itself.

    Args:
        name: As of a [`kd_dense.mm.distil.term.Term`][].
        cross_at: Behind how many convolutions of each tower; 0 is behind the neck, and -1 before
            the last convolution.
        fields: As of a [`kd_dense.mm.distil.term.Term`][]; the tap is the dense head, and an
            adapter lies in front of the teacher's layers, where widths differ.

    Raises:
        ValueError: If a field is missing, unknown or of the wrong kind.
    """

    def __init__(self, name: str, /, cross_at: int, **fields: Any) -> None:
        super().__init__(name, **fields)
        if not isinstance(cross_at, int) or isinstance(cross_at, bool):
            raise ValueError(
                f'term {name!r}: expected cross_at as a number of convolutions, got {cross_at!r}'
            )
        self.cross_at = cross_at
        self.tower_tap = ''  # of the teacher
        self._rest: RestOfHead | None = None

    def reach(self, student: nn.Module, teacher: nn.Module) -> None:
        """Find the towers of both heads.

        Args:
            student: The student.
            teacher: The teacher, which stays outside of the term's parameters.

        Raises:
            ValueError: If one of them has no towers of convolutions, or not so many.
        """
        own, head = (t.partition('[')[0] for t in (self.student_tap, self.teacher_tap))
        try:
            theirs = find_tower(teacher, head, 'teacher', self.cross_at)
            at = self.cross_at if theirs.convs else 0
            ours = find_tower(student, own, 'student', at)
            if theirs.convs and not ours.convs:  # of shorter towers, but of towers as well
                ours = find_tower(student, own, 'student', 1)
        except ValueError as error:
            raise ValueError(f'term {self.name!r}: {error}') from None
        self.student_tap, self.tower_tap = ours.tap, theirs.tap
        self.run_to = ours.tap, self.teacher_tap
        self._rest = RestOfHead(teacher.get_submodule(head), theirs.convs)

    @property
    def adaptable(self) -> bool:  # features do not reach the loss
        return True

    @property
    def one_teacher(self) -> bool:
        return True

    @property
    def paired_tap(self) -> str:
        return self.tower_tap

    @property
    def teacher_reach(self) -> list[str]:
        return [self.tower_tap, self.teacher_tap]

    def maps(
        self, step: Step, alias: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features of the towers of both; behind those of the teacher, what its head predicts."""
        student = step.student_maps(self.student_tap, alias)
        teacher = [*step.teacher_taps[self.tower_tap], *step.teacher_taps[self.teacher_tap]]
        return student, teacher

    def fits(self, student: list[Tensor], teacher: list[Tensor]) -> bool:
        return len(student) == len(self.adapters) < len(teacher)

    def compared(
        self, student: list[Tensor], teacher: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        assert self._rest is not None
        towers, predictions = teacher[: len(student)], teacher[len(student) :]
        return self._rest(self.adapted(student, towers), towers), predictions
