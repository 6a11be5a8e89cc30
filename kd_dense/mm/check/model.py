"""Checks of the model: that it can be built, what its taps yield, and who trains its critics."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict
from torch import nn

from kd_dense.losses import HolisticLoss
from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.configs import distils
from kd_dense.mm.cost.steps import build_to_try
from kd_dense.mm.distil.distilled import own_class
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.probe import Probe, probe
from kd_dense.mm.wording import spelt

__all__ = ['check_hooks', 'check_model', 'check_taps']


def check_model(subject: Subject) -> None:
    """Build the model, and count its parameters."""
    config = ConfigDict(subject.config.get('model') or {})
    if not distils(subject.config):
        subject.say(
            ERROR,
            f'the config distils nothing: its model is a {config.get("type")}',
            'give a recipe with a model of type kd_dense.Distilled, or --teacher and '
            '--distill beside the config of a student',
        )
        return
    if 'data_preprocessor' in subject.config:
        config.setdefault('data_preprocessor', subject.config.data_preprocessor)
    model = build_to_try(config)
    own = [p for name, p in model.named_parameters() if not name.startswith('kd.')]
    parts = {'student': own, 'kd': model.kd.parameters()}
    parts['teacher'] = model.kd_plan.teacher.model.parameters()
    counts = {name: sum(p.numel() for p in parameters) for name, parameters in parts.items()}
    subject.model = model
    subject.say(
        OK,
        '{} from {}: {student:.2f} M parameters in the student, {kd:.2f} M in kd (left out at '
        'export), {teacher:.2f} M in the teacher (frozen)'.format(
            own_class(type(model)).__name__,
            model.kd_plan.teacher.name,
            **{name: count / 1e6 for name, count in counts.items()},
        ),
        parameters=counts,
    )


def check_taps(subject: Subject) -> None:
    """Say for each term what its taps yield, and how that is compared."""
    terms = subject.model.kd
    ours = list(dict.fromkeys(term.student_tap for term in terms.values()))
    theirs = list(dict.fromkeys(term.teacher_tap for term in terms.values()))
    found = probe(subject.model, ours, subject.teacher.model, theirs)
    for name, term in terms.items():
        _say_taps(subject, name, term, found)


def _say_taps(subject: Subject, name: str, term: Term, found: Probe) -> None:
    a, b = found.student[term.student_tap], found.teacher[term.teacher_tap]
    adapters = [type(x).__name__ for x in term.adapters if not isinstance(x, nn.Identity)]
    how = 'compared as they are'
    if adapters:
        how = f'{len(adapters)} of {len(a.shapes)} through {adapters[0]}'
    ours = f'{term.student_tap} {spelt(a.shapes)}'
    theirs = f'{term.teacher_tap} {spelt(b.shapes)}'
    where = f'{ours} of the student, {theirs} of the teacher'
    if ours == theirs:
        where = f'{ours} of both'
    subject.say(
        OK,
        f'{name}: {where}, {how}',
        term=name,
        student=dict(tap=term.student_tap, shapes=a.shapes),
        teacher=dict(tap=term.teacher_tap, shapes=b.shapes),
        adapters=adapters,
        size=found.size,
    )


def check_hooks(subject: Subject) -> None:
    """Warn of a critic that nobody trains."""
    terms: Any = subject.model.kd
    critics = [name for name, term in terms.items() if isinstance(term.loss, HolisticLoss)]
    hooks = [str(hook.get('type')) for hook in subject.config.get('custom_hooks') or []]
    if critics and not any(hook.endswith('CriticHook') for hook in hooks):
        subject.say(
            WARNING,
            f'no CriticHook trains the critic of {", ".join(critics)}: kd_dense train adds '
            'it, with other tools the training stops in its second iteration',
            "add custom_hooks=[dict(type='kd_dense.CriticHook')]",
        )
