"""Terms behind region proposals: both models look at the regions that the student has sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_dense.mm.batches.rois import RoIs, read_rois
from kd_dense.mm.batches.targets import Step
from kd_dense.mm.models.box_heads import BoxHead, box_head_yield, check_box_heads
from kd_dense.mm.models.probe import Probe, Yield
from kd_dense.mm.teachers.guest import Teacher
from kd_dense.taps import TapError, Taps

__all__ = ['SharedRoIs', 'by_box_heads', 'told_by_box_head', 'with_teacher_on_rois']

# What a loss may need here: the label of each row.
LABELS = 'segmentation'


class SharedRoIs(NamedTuple):
    """The box heads of a term, whose teacher looks at the student's RoIs.

    Attributes:
        name: The name of the term.
        taps: Those of student and teacher.
        heads: The box heads that these lie in.
    """

    name: str
    taps: tuple[str, str]
    heads: tuple[BoxHead, BoxHead]

    @classmethod
    def of(cls, name: str, student: str, teacher: str) -> SharedRoIs:
        """The box heads of two taps.

        Raises:
            TapError: If one of them does not lie in a box head.
        """
        return cls(name, (student, teacher), (BoxHead.of(student), BoxHead.of(teacher)))

    @property
    def targets(self) -> str:
        """The tap of the student that tells the RoIs and their labels."""
        return self.heads[0].targets

    def features(self, student: Any, teacher: Any) -> tuple[str, str]:
        """The taps of what RoIs are pooled from in both models."""
        found = []
        for whose, model, tap, head in zip(
            ('student', 'teacher'), (student, teacher), self.taps, self.heads, strict=True
        ):
            try:
                with Taps([tap]).on(model):
                    found.append(head.features(model))
            except TapError as error:
                raise TapError(f'{whose}: {error}') from None
        return found[0], found[1]

    def read(self, step: Step) -> RoIs:
        """The RoIs of a step."""
        return read_rois(step.student_taps, self.targets)

    def needed(self, needs: Sequence[str], step: Step) -> dict[str, Tensor]:
        """What a loss needs beside the rows of a step."""
        return {need: self.read(step).labels for need in needs}

    def check(self, needs: Sequence[str], student: Any, teacher: Any) -> None:
        """Make sure that the box heads can be compared.

        Raises:
            ValueError: If they cannot, or the loss needs what there is none of.
        """
        for need in needs:
            if need != LABELS:
                raise ValueError(
                    f'term {self.name!r}: the loss needs {need!r}, and with shared_rois=True '
                    'there are labels of the RoIs and nothing else: take DKDLoss, DISTLoss, '
                    'KDLoss or RoIBoxLoss'
                )
        try:
            check_box_heads(student, self.taps[0], teacher, self.taps[1])
        except ValueError as error:
            raise ValueError(f'term {self.name!r}: {error}') from None

    def yields(self, student: Any, teacher: Any, found: Probe) -> tuple[Yield, Yield]:
        """What the taps yield in student and teacher for two RoIs."""
        ours, theirs = self.features(student, teacher)
        return (
            box_head_yield(student, self.taps[0], found.student[ours], found.size),
            box_head_yield(teacher, self.taps[1], found.teacher[theirs], found.size),
        )


def told_by_box_head(student: Any, shared: SharedRoIs) -> dict[str, Any]:
    """What losses are told that have an argument of that name."""
    head = student.get_submodule(shared.heads[0].path)
    sigmoid = getattr(getattr(head, 'loss_cls', None), 'use_sigmoid', None)
    # No label is left out: 255 is a class, where there are as many.
    return dict(num_classes=getattr(head, 'num_classes', None), ignore_index=-1, sigmoid=sigmoid)


def with_teacher_on_rois(teacher: Teacher, shared: Sequence[SharedRoIs], step: Step) -> Step:
    """Run the teacher's box heads on the student's RoIs.

    Args:
        teacher: It has run on the batch.
        shared: The box heads of the terms.
        step: What was recorded in both.

    Returns:
        The same with what the teacher's taps have yielded.
    """
    found = {}
    for (targets, head), taps in by_box_heads(shared).items():
        recorded = Taps(taps)
        features = step.teacher_taps[head.features(teacher.model)]
        index, *corners = read_rois(step.student_taps, targets).boxes.split([1, 4], 1)
        # TridentNet sees all images in a first branch, then in the next.
        boxes = torch.cat([index % len(features[0]), *corners], 1)
        teacher.run_on_rois(recorded, head, features, boxes)
        for one in shared:
            if (one.targets, one.heads[1]) == (targets, head):
                found[one.name] = recorded[one.taps[1]][-1]
        recorded.clear()
    return step._replace(on_rois=found)


def by_box_heads(shared: Sequence[SharedRoIs]) -> dict[tuple[str, BoxHead], list[str]]:
    """The taps of the teacher that one run of a box head yields.

    Terms on the same heads, of classes and of boxes, share a run.

    Returns:
        By the tap that tells the RoIs of the student, and the box head of the teacher.
    """
    groups: dict[tuple[str, BoxHead], list[str]] = {}
    for one in shared:
        groups.setdefault((one.targets, one.heads[1]), []).append(one.taps[1])
    return groups
