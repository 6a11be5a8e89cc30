"""Checks of the weights that teacher and student start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.distil.guests import inherited_from
from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.mm.models.inherit import fitting, inherit_parts
from kd_dense.mm.teachers.several import has_own_weights
from kd_dense.mm.wording import listed

__all__ = ['check_inherit', 'check_student_weights', 'check_teacher']


def check_teacher(subject: Subject) -> None:
    """Load the teachers, and say what of their checkpoints does not fit."""
    for whose, teacher in subject.teachers.items():
        if not _load(subject, whose, teacher):
            subject.unloaded.add(whose)
            teacher.checkpoint = None


def _load(subject: Subject, whose: str, teacher: Any) -> bool:
    """Load a teacher, and say how that went."""
    if teacher.checkpoint is None:
        return _without_checkpoint(subject, whose, teacher)
    source = teacher.checkpoint
    try:
        state = teacher.read()
    except (ValueError, OSError) as error:
        subject.say(ERROR, str(error), 'name a file that is there, complete and without code')
        return False
    wrong = _misfits(teacher.model, state)
    kinds = [f'{len(names)} {kind}: {listed(names)}' for kind, names in wrong.items()]
    text = f'{source} does not fit {teacher.name}: {"; ".join(kinds)}'
    try:
        teacher.load(state)
    except ValueError as error:
        remedy = 'give the checkpoint of this config, or the config of this checkpoint'
        subject.say(ERROR, text if wrong else str(error), remedy, **wrong)
        return False
    if wrong:
        remedy = 'the rest is loaded (strict=False): make sure that no tap depends on these'
        subject.say(WARNING, text, remedy, **wrong)
    else:
        text = f'all {len(state)} tensors of {source} fit {teacher.name}'
        subject.say(OK, text, tensors=len(state))
    return True


def _without_checkpoint(subject: Subject, whose: str, teacher: Any) -> bool:
    if not has_own_weights(teacher):
        subject.say(OK, f'{teacher.name} starts as the student does')
        return True
    if teacher._loaded:
        subject.say(OK, f'{teacher.name} was given as a model, with its weights')
        return True
    subject.say(
        ERROR,
        f'the {whose} {teacher.name} is untrained (checkpoint=None)',
        'say teacher=dict(config=..., checkpoint=PATH); an untrained one is for smoke '
        'runs and benchmarks',
    )
    return False


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What of a checkpoint and of a model does not find its like in the other."""
    own = model.state_dict()
    shapes = {k: (tuple(v.shape), tuple(own[k].shape)) for k, v in state.items() if k in own}
    found = {
        'missing': [name for name in own if name not in state],
        'unexpected': [name for name in state if name not in own],
        'misshapen': [f'{k} ({a}, expected {b})' for k, (a, b) in shapes.items() if a != b],
    }
    return {kind: names for kind, names in found.items() if names}


def check_student_weights(subject: Subject) -> None:
    """Initialise the student as a training does, and say what it starts from."""
    model, plan = subject.model, subject.model.kd_plan
    try:
        model.init_weights()
    except Exception:  # becomes a finding; the other checks go on with what is there
        source = inherited_from(plan.guests, plan.inherit)
        if source is not None:
            inherit_parts(model, source.model, plan.inherit)
        raise
    source = subject.config.get('load_from')
    if not source:
        subject.say(OK, 'the student starts untrained, but for what its init_cfg loads')
        return
    own = {k: v for k, v in model.state_dict().items() if not k.startswith('kd.')}
    state = read_checkpoint(source)
    fit = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fit, strict=False)
    missing = [name for name in own if name not in fit]
    subject.student_is_trained = len(fit) > len(own) / 2
    text = f'{len(fit)} of {len(own)} tensors of the student start from {source}'
    if missing:
        text += f'; not {listed(missing)}'
    status = OK if subject.student_is_trained else WARNING
    remedy = '' if subject.student_is_trained else 'is this the checkpoint of another model?'
    subject.say(status, text, remedy, missing=missing)


def check_inherit(subject: Subject) -> None:
    """Say what the student takes over from the teacher."""
    plan = subject.model.kd_plan
    source: Any = inherited_from(plan.guests, plan.inherit)
    for part in plan.inherit:
        fit, left_out = fitting(subject.model, source.model, part)
        text = f'{len(fit)} of {len(fit) + len(left_out)} tensors of {part} start from the '
        text += "teacher's" + (f'; not {listed(left_out)}' if left_out else '')
        subject.say(OK, text, part=part, fit=fit, left_out=left_out)
