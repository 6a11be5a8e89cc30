"""The distiller of a config of mmrazor as the terms of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from kd_dense.mm.configs import RequestError, type_name
from kd_dense.mm.mmrazor.losses import LOSSES, REASONS, Given, Term
from kd_dense.mm.mmrazor.note import CannotError, Notes
from kd_dense.mm.mmrazor.places import Places, joined

__all__ = ['terms_of']

RECORD = ('from_student', 'recorder', 'record_idx', 'data_idx', 'connector', 'connector_idx')
DENSE_HEADS = ('bbox_head', 'mask_head', 'rpn_head')
# Settings of a loss for all maps of which each level of mmrazor's has its own.
BY_LEVEL = ('reductions', 'pools')


class Found(NamedTuple):
    """A loss of mmrazor: its name, its taps in student and teacher, and the rest of the term."""

    name: str
    taps: tuple[str, str]
    term: Term


def terms_of(
    distiller: Mapping[str, Any], places: Sequence[Places], batch_size: int, notes: Notes
) -> dict[str, dict[str, Any]]:
    """The terms of a distiller, those of the levels of a pyramid in one.

    Args:
        distiller: Its config.
        places: Where taps lie, in the student and in the teacher.
        batch_size: Images of a process.
        notes: What is to be said is added.

    Raises:
        RequestError: If it is another distiller.
    """
    if type_name(distiller) not in ('ConfigurableDistiller', ''):
        raise RequestError(
            f'model.distiller is a {type_name(distiller)}, and ConfigurableDistiller is carried '
            'over'
        )
    for name in distiller.get('distill_deliveries') or {}:
        notes.changed(
            f'model.distiller.distill_deliveries.{name}',
            "left out: a student that is handed the teacher's results in the place of its own "
            'is not in kd_dense',
        )
    mappings = distiller.get('loss_forward_mappings') or {}
    found = []
    for name in [*mappings, *(distiller.get('distill_losses') or {}).keys() - mappings.keys()]:
        where = f'model.distiller.distill_losses.{name}'
        if name not in mappings:
            notes.known(where, 'left out: no loss_forward_mappings, so that it is not computed')
        elif 'loss' not in name:
            notes.known(where, "left out: mmengine trains on what has 'loss' in its name")
        else:
            try:
                one = _found(distiller, name, places, batch_size)
            except CannotError as error:
                notes.changed(where, f'left out: {error}')
                continue
            if one.term.remark:
                say = notes.changed if one.term.changed else notes.known
                say(where, one.term.remark)
            found.append(one)
    return _gathered(found, places)


def _found(
    distiller: Mapping[str, Any], name: str, places: Sequence[Places], batch_size: int
) -> Found:
    loss = (distiller.get('distill_losses') or {}).get(name)
    if loss is None:
        raise CannotError('distill_losses does not have it')
    kind, mapping = type_name(loss), distiller['loss_forward_mappings'][name]
    if kind not in LOSSES:
        raise CannotError(REASONS.get(kind, f'{kind} is not in kd_dense'))
    rule = LOSSES[kind]
    for other in mapping.keys() - {rule.student, rule.teacher, *rule.labels, '_scope_'}:
        raise CannotError(f"mmrazor's {kind} takes no {other}")
    for argument in (rule.student, rule.teacher):
        if argument not in mapping:
            raise CannotError(f'loss_forward_mappings has no {argument} for it')
    ours, student = _record(distiller, mapping[rule.student], 'student', places[0])
    theirs, teacher = _record(distiller, mapping[rule.teacher], 'teacher', places[1])
    in_dense_head = ours.partition('.')[0].partition('[')[0] in DENSE_HEADS
    term = rule.term(Given(dict(loss), student, teacher, in_dense_head, batch_size))
    return Found(name.removeprefix('loss_'), (ours, theirs), term)


def _record(
    distiller: Mapping[str, Any], record: Mapping[str, Any], whose: str, places: Places
) -> tuple[str, Mapping[str, Any] | None]:
    """The tap of a record, and the connector behind it."""
    for key in record.keys() - {*RECORD, '_scope_'}:
        raise CannotError(f'a record has no {key!r}')
    if record.get('from_student') is not (whose == 'student'):
        raise CannotError(
            f'its record of the {whose} is not one: terms compare the student with the teacher'
        )
    recorder = (distiller.get(f'{whose}_recorders') or {}).get(record.get('recorder'))
    if recorder is None:
        raise CannotError(f'{whose}_recorders has no {record.get("recorder")!r}')
    if record.get('connector_idx') is not None:
        raise CannotError('its connector has several results')
    tap = places.tap(recorder, record.get('record_idx', 0), record.get('data_idx'))
    return tap, _connector(distiller, record.get('connector'))


def _connector(distiller: Mapping[str, Any], name: str | None) -> Mapping[str, Any] | None:
    if name is None:
        return None
    found = (distiller.get('connectors') or {}).get(name)
    if isinstance(found, (list, tuple)) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Mapping):
        raise CannotError(f'its connector {name!r} is not one module')
    return found


def _gathered(found: Sequence[Found], places: Sequence[Places]) -> dict[str, dict[str, Any]]:
    """Terms by name, where those that differ in the level of their taps alone are one."""
    terms: dict[str, dict[str, Any]] = {}
    for _, group in groupby(found, lambda one: (_stem(one.name), _shared(one.term))):
        members = [*group]
        taps = None
        if len(members) > 1:
            taps = joined([one.taps for one in members], [place.whole for place in places])
        if taps is not None:
            stem, term = _stem(members[0].name), _all_levels([one.term for one in members])
            if len(stem) < 2:  # as of loss_s0, loss_s1
                stem = term.loss['type'].removesuffix('Loss').lower()
            members = [Found(stem, taps, term)]
        for one in members:
            terms[_free(one.name, terms)] = _fields(one)
    return terms


def _stem(name: str) -> str:
    return re.sub(r'_?\d+$', '', name)


def _shared(term: Term) -> tuple[Any, ...]:
    loss = {name: value for name, value in term.loss.items() if name not in BY_LEVEL}
    return loss, term.adapter


def _all_levels(terms: Sequence[Term]) -> Term:
    levels = {
        name: tuple(one.loss[name][0] for one in terms)
        for name in BY_LEVEL
        if name in terms[0].loss
    }
    return terms[0]._replace(loss={**terms[0].loss, **levels})


def _free(name: str, terms: Mapping[str, Any]) -> str:
    """A name that a term can have, and none has."""
    name = re.sub(r'\W', '_', name)
    while name in terms or not name.isidentifier():
        name = f'kd_{name}'
    return name


def _fields(found: Found) -> dict[str, Any]:
    ours, theirs = found.taps
    tap = ours if ours == theirs else dict(student=ours, teacher=theirs)
    fields: dict[str, Any] = dict(tap=tap, loss=found.term.loss)
    if found.term.adapter is not True:
        fields['adapter'] = found.term.adapter
    return fields
