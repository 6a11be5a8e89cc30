"""Checks of the model: that it can be built, what its taps yield, and who trains its critics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from mmengine.config import ConfigDict

from kd_dense.losses import HolisticLoss
from kd_dense.mm.batches.made_up import any_tensor
from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.configs import distils, has_hook, type_name
from kd_dense.mm.cost.steps import build_to_try, preprocessed
from kd_dense.mm.distil.distilled import own_class
from kd_dense.mm.distil.term import Term
from kd_dense.mm.hooks.critic import CriticHook
from kd_dense.mm.models.probe import Probe, probe
from kd_dense.mm.teachers.several import called
from kd_dense.mm.wording import spelt

__all__ = ['check_hooks', 'check_model', 'check_taps']


def check_model(subject: Subject) -> None:
    """Build the model, and count its parameters."""
    config = ConfigDict(subject.config.get('model') or {})
    if not distils(subject.config):
        subject.say(
            ERROR,
            f'the config distils nothing: its model is a {type_name(config) or None}',
            'give a recipe with a model of type kd_dense.Distilled, or --teacher and '
            '--distill beside the config of a student',
        )
        return
    if 'data_preprocessor' in subject.config:
        config.setdefault('data_preprocessor', subject.config.data_preprocessor)
    model = build_to_try(config)
    own = [p for name, p in model.named_parameters() if not name.startswith('kd.')]
    parts = {'student': own, 'kd': model.kd.parameters()}
    subject.model = model
    teachers = subject.teachers
    parts |= {whose: one.model.parameters() for whose, one in teachers.items()}
    counts = {name: sum(p.numel() for p in parameters) for name, parameters in parts.items()}
    millions = {name: f'{count / 1e6:.2f} M' for name, count in counts.items()}
    theirs = [f', {millions[whose]} in the {whose} (frozen)' for whose in teachers]
    names = ' and '.join(one.name for one in teachers.values())
    for name, guest in model.kd_plan.running.items():  # nothing is written here
        subject.caches[name], guest.teacher.cache = guest.teacher.cache, None
    subject.say(
        OK,
        f'{own_class(type(model)).__name__} from {names or "itself"}: {millions["student"]} '
        f'parameters in the student, {millions["kd"]} in kd (left out at export)'
        + ''.join(theirs),
        parameters=counts,
    )


def check_taps(subject: Subject) -> None:
    """Say for each term what its taps yield on images as of the batches, and how that is compared.

    Without data it is what they yield on small images.
    """
    model, size = subject.model, _size_of_batches(subject)
    for name, guest in model.kd_plan.guests.items():
        terms = {k: term for k, term in model.kd.items() if term.teachers[0] == name}
        if not terms:  # all of it are means of several, which are alike
            continue
        ours = list(dict.fromkeys(term.run_to[0] for term in terms.values()))
        theirs = list(dict.fromkeys(chain(*(term.teacher_reach for term in terms.values()))))
        teacher = model if guest is None else guest.teacher.model
        found = probe(model, ours, teacher, theirs, first=size)
        for key, term in terms.items():
            _say_taps(subject, key, term, teacher, found)


def _size_of_batches(subject: Subject) -> tuple[int, int] | None:
    """Height and width of the images that the student is given, by the first batch."""
    if not subject.batches:
        return None
    inputs = preprocessed(subject.model, subject.batches[0]).inputs
    height, width = any_tensor(inputs).shape[-2:]
    return height, width


def _say_taps(subject: Subject, name: str, term: Term, teacher: Any, found: Probe) -> None:
    if term.rois is None:
        a, b = found.student[term.student_tap], found.teacher[term.paired_tap]
    else:
        a, b = term.rois.yields(subject.model, teacher, found)
    ways = [way for way in term.ways(a, b, found.size) if way]
    how = 'compared as they are'
    if ways:
        how = ', '.join(_counted(ways, way, len(a.shapes)) for way in dict.fromkeys(ways))
    size = f'on images of {found.size[0]}x{found.size[1]}'
    if term.rois is not None:
        size = 'on the same RoIs, here 2'
    ours = f'{term.student_tap} {spelt(a.shapes)}'
    theirs = f'{term.paired_tap} {spelt(b.shapes)}'
    whose = ' and '.join(map(called, term.teachers))
    where = f'{ours} of the student, {theirs} of the {whose}'
    if term.within:
        where = f'{ours}, and {theirs} of the student itself'
    elif ours == theirs:
        where = f'{ours} of ' + (f'the student and {whose}' if 'teacher ' in whose else 'both')
    subject.say(
        OK,
        f'{name}: {where}, {how}, {size}',
        term=name,
        student=dict(tap=term.student_tap, shapes=a.shapes),
        teacher=dict(tap=term.paired_tap, shapes=b.shapes),
        ways=ways,
        size=found.size,
    )


def _counted(ways: Sequence[str], way: str, maps: int) -> str:
    through = 'resized' if way == 'resized' else f'through {way}'
    return f'{ways.count(way)} of {maps} {through}'


def check_hooks(subject: Subject) -> None:
    """Warn of a critic that nobody trains."""
    terms: Any = subject.model.kd
    critics = [name for name, term in terms.items() if isinstance(term.loss, HolisticLoss)]
    if critics and not has_hook(subject.config, CriticHook):
        subject.say(
            WARNING,
            f'no CriticHook trains the critic of {", ".join(critics)}: kd_dense train adds '
            'it, with other tools the training stops in its second iteration',
            "add custom_hooks=[dict(type='kd_dense.CriticHook')]",
        )
