"""Whether the maps of a teacher can be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kd_dense.mm.batches.targets import NEEDS
from kd_dense.mm.distil.crossing import CrossTerm
from kd_dense.mm.distil.term import Term

__all__ = ['check_cache', 'maps_alone']


def check_cache(student: Any, terms: Mapping[str, Term], by_loss: bool) -> None:
    """Make sure that all that terms need of the teacher are its maps of one picture.

    Args:
        student: The student.
        terms: The terms by name.
        by_loss: Whether the teacher's taps run only while it computes its own loss.

    Raises:
        ValueError: If they need more.
    """
    remedy = 'leave cache out'
    if by_loss:
        raise ValueError(
            'teacher: cache: its taps run only while it computes its own loss, which depends on '
            f'the labels: {remedy}'
        )
    if getattr(student.data_preprocessor, 'batch_augments', None):
        raise ValueError(
            'teacher: cache: the data_preprocessor of the student has batch_augments, which '
            f'change pictures behind the pipeline: {remedy}, or take them out'
        )
    for name, term in terms.items():
        if reason := _reason(term):
            raise ValueError(f'teacher: cache: term {name!r} {reason}: {remedy}')


def maps_alone(terms: Iterable[Term], by_loss: bool) -> bool:
    """Whether terms use nothing of the teacher but maps; arguments as of [`check_cache`][]."""
    return not (by_loss or any(map(_reason, terms)))


def _reason(term: Term) -> str:
    if term.rois is not None:
        return "runs the teacher's box head on regions that the student has found"
    if isinstance(term, CrossTerm):
        return "sends the student's features through the teacher's head"
    if any(NEEDS[need].teacher_taps for need in term.needs) or 'decoders' in term.needs:
        return 'needs more of the teacher than maps'
    return ''
