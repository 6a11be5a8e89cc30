"""Build the terms of a student, and fit them to what its taps yield."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from mmengine.logging import print_log
from torch import nn

from kd_dense.mm.batches.targets import NEEDS
from kd_dense.mm.distil.rehearsal import rehearse
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.probe import Probe, Yield, probe

__all__ = ['build_terms', 'check_classes']


def build_terms(
    student: nn.Module, teacher: nn.Module, terms: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Term], Probe]:
    """Build the terms and fit them to what one small forward pass of each model yields.

    Args:
        student: The student; weights, mode and random state stay as they are.
        teacher: The teacher; so do its own.
        terms: Name and fields of each [`kd_dense.mm.distil.term.Term`][].

    Returns:
        The terms by name, and what their taps yield.

    Raises:
        ValueError: If a name, a field, a tap, a loss or a shape does not fit.
    """
    built = _named(terms)
    found = probe(student, _taps(t.student_tap for t in built.values()),
                  teacher, _taps(t.teacher_tap for t in built.values()))  # fmt: skip
    for term in built.values():
        _fit(term, student, teacher, found)
    taps = _taps(chain(*(term.teacher_taps for term in built.values())))
    if not set(taps) <= found.teacher.keys():  # a loss may need more than its own tap
        found = probe(student, list(found.student), teacher, taps)
    return built, rehearse(student, teacher, list(built.values()), found)


def _taps(names: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(names))


def _named(terms: Mapping[str, Mapping[str, Any]]) -> dict[str, Term]:
    """The terms by name, as yet without losses."""
    if not isinstance(terms, Mapping):
        raise ValueError(
            "expected terms as dict(NAME=dict(tap='neck', loss=dict(type='CWDLoss'))), "
            f'got {terms!r}'
        )
    built = {}
    for name, fields in terms.items():
        if name == '_scope_':
            continue
        plain = isinstance(name, str) and name.isidentifier()
        if not plain or hasattr(nn.ModuleDict(), name):
            raise ValueError(f'{name!r} cannot be the name of a term: choose a plain word')
        if not isinstance(fields, Mapping):
            raise ValueError(f'term {name!r}: expected dict(tap=..., loss=...), got {fields!r}')
        built[name] = Term(name, **fields)
    if not built:
        raise ValueError(
            "terms is empty: say what to distil, as terms=dict(cwd=dict(tap='neck', "
            "loss=dict(type='CWDLoss')))"
        )
    return built


def _fit(term: Term, student: nn.Module, teacher: nn.Module, found: Probe) -> None:
    """Build the losses and the adapters of a term for what its taps yield."""
    ours, theirs = found.student[term.student_tap], found.teacher[term.teacher_tap]
    check_classes(term, student, ours, teacher, theirs)
    term.build_losses(theirs, _classes(student, 'decode_head'))
    for need in term.loss.needs:
        _check_need(term, need, student, teacher)
    term.fit(ours, theirs)
    for index, adapter in enumerate(term.adapters):
        if not isinstance(adapter, nn.Identity):
            print_log(
                f'term {term.name!r}: map {index} of the student, {ours.shapes[index]}, gets '
                f"an adapter to the shape of the teacher's, {theirs.shapes[index]}",
                logger='current',
            )


def _check_need(term: Term, need: str, student: nn.Module, teacher: nn.Module) -> None:
    check = NEEDS[need].check
    if check is not None:
        try:
            check(student, teacher)
        except ValueError as error:
            raise ValueError(f'term {term.name!r}: {error}') from None


def check_classes(
    term: Term, student: nn.Module, ours: Yield, teacher: nn.Module, theirs: Yield
) -> None:
    """Refuse to compare class logits of different classes; no adapter can make them fit."""
    s, t = _classes(student, term.student_tap), _classes(teacher, term.teacher_tap)
    if not s or not t or s == t:
        return
    for a, b in zip(ours.shapes, theirs.shapes, strict=False):
        per_class = a[1] / s if len(a) == 4 else 0.0
        if len(b) == 4 and per_class == b[1] / t and per_class in range(1, 17):
            raise ValueError(
                f'term {term.name!r}: tap {term.student_tap!r} yields logits of {s} classes in '
                f'the student and tap {term.teacher_tap!r} of {t} classes in the teacher; '
                'logits of different classes cannot be compared: take a teacher with the same '
                'classes, or tap a feature map'
            )


def _classes(model: nn.Module, tap: str) -> int | None:
    """How many class channels the head has that a tap lies in."""
    found, module = None, model
    for part in tap.partition('[')[0].split('.'):
        child = module._modules.get(part)
        if child is None:
            break
        module = child
        found = _own_classes(module) or found
    if found is None and isinstance(module, nn.ModuleList) and len(module):
        return _own_classes(module[-1])  # of several heads, the one that predicts
    return found


def _own_classes(head: nn.Module) -> int | None:
    names = ('cls_out_channels', 'num_classes')
    return next((x for n in names if isinstance(x := getattr(head, n, None), int)), None)
