"""Build the terms of a student, and fit them to what its taps yield."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from mmengine.logging import print_log
from torch import nn

from kd_dense.mm.batches.targets import NEEDS
from kd_dense.mm.distil.crossing import CrossTerm
from kd_dense.mm.distil.guests import check_alike, settle_teachers
from kd_dense.mm.distil.rehearsal import rehearse
from kd_dense.mm.distil.shared_rois import told_by_box_head
from kd_dense.mm.distil.term import Term
from kd_dense.mm.distil.tokens import shapes_as_maps
from kd_dense.mm.models.probe import Probe, Yield, probe

__all__ = ['build_terms', 'check_classes', 'yields']


def build_terms(
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    terms: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Term], dict[str, Probe]]:
    """Build the terms and fit them to what one small forward pass of each model yields.

    Args:
        student: The student; weights, mode and random state stay as they are.
        teachers: The teachers by name, and so do their own; among them may be the student itself.
        terms: Name and fields of each [`kd_dense.mm.distil.term.Term`][].

    Returns:
        The terms by name, and by the name of each teacher what the taps of its terms yield.

    Raises:
        ValueError: If a name, a field, a tap, a loss, a teacher or a shape does not fit.
    """
    built = _named(terms)
    settle_teachers(built.values(), teachers, student)
    for term in built.values():
        teacher = teachers[term.teachers[0]]
        if isinstance(term, CrossTerm):
            term.reach(student, teacher)
        if term.rois is not None:
            term.run_to = term.rois.features(student, teacher)
    found: dict[str, Probe] = {}
    for name, teacher in teachers.items():
        heard = [term for term in built.values() if name in term.teachers]
        size = next(iter(found.values())).size if found else None
        found[name] = probe(student, _taps(t.run_to[0] for t in heard),
                            teacher, _taps(chain(*(t.teacher_reach for t in heard))),
                            first=size)  # fmt: skip
    for term in built.values():
        name = term.teachers[0]
        _fit(term, student, teachers[name], found[name])
        check_alike(term, found)
    for name, teacher in teachers.items():
        heard = [term for term in built.values() if name in term.teachers]
        taps = _taps(chain(*(term.teacher_taps for term in heard)))
        if not set(taps) <= found[name].teacher.keys():  # a loss may need more than its own tap
            found[name] = probe(student, list(found[name].student), teacher, taps)
        first = [term for term in heard if name == term.teachers[0]]
        found[name] = rehearse(student, teacher, first, found[name])
    return built, found


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
        built[name] = (CrossTerm if 'cross_at' in fields else Term)(name, **fields)
    if not built:
        raise ValueError(
            "terms is empty: say what to distil, as terms=dict(cwd=dict(tap='neck', "
            "loss=dict(type='CWDLoss')))"
        )
    return built


def _fit(term: Term, student: nn.Module, teacher: nn.Module, found: Probe) -> None:
    """Build the losses and the adapters of a term for what its taps yield."""
    ours, theirs = yields(term, student, teacher, found)
    if isinstance(term, CrossTerm):
        predicted = found.teacher[term.teacher_tap]
        term.build_losses(predicted, predicted, _told_by_heads(student, term.student_tap))
    elif term.rois is None:
        term.build_losses(ours, theirs, _told_by_heads(student, term.student_tap))
    else:
        term.build_losses(ours, theirs, told_by_box_head(student, term.rois))
        term.rois.check(term.loss.needs, student, teacher)
    if not isinstance(term, CrossTerm):
        check_classes(term, student, ours, teacher, theirs)
    for need in term.needs:
        _check_need(term, need, student, teacher)
    term.fit(ours, theirs)
    for index, adapter in enumerate(term.adapters):
        if not isinstance(adapter, nn.Identity):
            print_log(
                f'term {term.name!r}: map {index} of the student, {ours.shapes[index]}, gets '
                f"an adapter to the shape of the teacher's, {theirs.shapes[index]}",
                logger='current',
            )


def yields(
    term: Term, student: nn.Module, teacher: nn.Module, found: Probe
) -> tuple[Yield, Yield]:
    """What the taps of a term yield in student and teacher, tokens as maps."""
    if term.rois is not None:
        return term.rois.yields(student, teacher, found)
    both = found.student[term.student_tap], found.teacher[term.paired_tap]
    return shapes_as_maps(*both, found.size, term.of_features)


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
    """Refuse to compare class logits that no adapter can make fit.

    A trainable layer between them would learn to translate one class into another one.
    """
    if term.loss.of_queries:  # which are no maps; it says itself what differs
        return
    s = _on_way(student, term.student_tap, _head)
    t = _on_way(teacher, term.teacher_tap, _head)
    if s is None or t is None:
        return
    adapts = term.adapter is True and all(x.adaptable and not x.any_channels for x in term.losses)
    if any(x.extra_classes for x in term.losses) and s.classes >= t.classes:
        return
    for a, b in zip(ours.shapes, theirs.shapes, strict=False):
        if not len(a) == len(b) == 4:
            continue
        per_class = a[1] / s.channels
        if s.classes == t.classes:
            if adapts and a[1] != b[1] and (a[1], b[1]) == (s.logits, t.logits):
                raise ValueError(
                    f'term {term.name!r}: tap {term.student_tap!r} yields logits of '
                    f'{a[1]} channel{"s" * (a[1] > 1)} in the student and tap '
                    f'{term.teacher_tap!r} of {b[1]} in the teacher, for the same {s.classes} '
                    'classes: build both heads alike (out_channels, use_sigmoid, anchors), tap a '
                    'feature map, or give an adapter of your own'
                )
        elif per_class == b[1] / t.channels and per_class in range(1, 17):
            raise ValueError(
                f'term {term.name!r}: tap {term.student_tap!r} yields logits of {s.classes} '
                f'classes in the student and tap {term.teacher_tap!r} of {t.classes} classes in '
                'the teacher; logits of different classes cannot be compared: take a teacher with '
                'the same classes, or tap a feature map'
            )


def _told_by_heads(student: nn.Module, tap: str) -> dict[str, Any]:
    """What losses are told that have an argument of that name."""
    head = _on_way(student, 'decode_head', _head)
    ignored = (_on_way(student, one, _ignore_index) for one in (tap, 'decode_head'))
    return dict(
        num_classes=None if head is None else head.channels,
        ignore_index=next((one for one in ignored if one is not None), None),
        sigmoid=_on_way(student, tap, _sigmoid),
    )


class _Head(NamedTuple):
    """What a head says of its classes."""

    classes: int
    channels: int  # for them, a background's included
    logits: int | None  # channels of its map of class logits, if it is known


T = TypeVar('T')


def _on_way(model: nn.Module, tap: str, read: Callable[[nn.Module], T | None]) -> T | None:
    """What the innermost module says that a tap lies in and that says something."""
    found, module = None, model
    for part in tap.partition('[')[0].split('.'):
        child = module._modules.get(part)
        if child is None:
            break
        module = child
        said = read(module)
        found = found if said is None else said
    if found is None and isinstance(module, nn.ModuleList) and len(module):
        return read(module[-1])  # of several heads, the one that predicts
    return found


def _head(module: nn.Module) -> _Head | None:
    classes, channels, priors, out = (
        value if isinstance(value := getattr(module, name, None), int) else None
        for name in ('num_classes', 'cls_out_channels', 'num_base_priors', 'out_channels')
    )
    width = channels or classes
    if not width:
        return None
    logits = None
    if channels and priors:  # of mmdet
        logits = channels * priors
    elif out in (classes, 1):  # of mmseg
        logits = out
    return _Head(classes or width, width, logits)


def _sigmoid(module: nn.Module) -> bool | None:
    """Whether a head of mmdet takes each class for itself."""
    # Of dense heads, and of those of queries.
    value = getattr(
        module, 'use_sigmoid_cls', getattr(getattr(module, 'loss_cls', None), 'use_sigmoid', None)
    )
    return value if isinstance(value, bool) else None


def _ignore_index(module: nn.Module) -> int | None:
    value = getattr(module, 'ignore_index', None)
    return value if isinstance(value, int) else None
