"""A student that distils while it trains, and is otherwise itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import chain
from math import lcm
from typing import Any, cast

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from kd_dense.mm.batches.boxes import is_rotated
from kd_dense.mm.batches.made_up import any_tensor
from kd_dense.mm.batches.targets import Step, gather
from kd_dense.mm.batches.two_views import as_teachers_see
from kd_dense.mm.distil.fields import share_now
from kd_dense.mm.distil.first_steps import FirstSteps
from kd_dense.mm.distil.fitting import build_terms
from kd_dense.mm.distil.guests import Guest, inherited_from, taught
from kd_dense.mm.distil.term import Term
from kd_dense.mm.distil.unlabelled.pseudo import pseudo_of
from kd_dense.mm.distil.unlabelled.step import Pictures, Unlabelled, sort_pictures, views
from kd_dense.mm.finite import FiniteCheck
from kd_dense.mm.models.inherit import check_inherit, inherit_parts
from kd_dense.mm.presets.choose import Weights
from kd_dense.mm.presets.teachers import Methods, choose_for_teachers
from kd_dense.mm.randomness import kept_random_state
from kd_dense.mm.stack.install import score_in_threads
from kd_dense.mm.teachers.average import AverageTeacher
from kd_dense.mm.teachers.cached import views_of
from kd_dense.mm.teachers.guest import Teacher
from kd_dense.mm.teachers.several import build_one, has_own_weights, teachers_of
from kd_dense.registry import MODELS
from kd_dense.shares import ShareMeter
from kd_dense.taps import Taps, near_names

__all__ = ['Distilled', 'bare', 'distilled', 'own_class']

FIELDS = (
    'student',
    'teacher',
    'terms',
    'inherit',
    'preset',
    'weights',
    'data_preprocessor',
    'checks',
    'unlabelled',
    'pseudo',
    'compile_losses',
)


@MODELS.register_module()
def Distilled(  # noqa: N802  (a type in configs)
    student: Mapping[str, Any] | nn.Module,
    teacher: str | Mapping[str, Any] | nn.Module | None,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
    inherit: Sequence[str] = (),
    preset: Methods | None = None,
    weights: Weights = 'auto',
    data_preprocessor: Mapping[str, Any] | None = None,
    checks: bool = True,
    unlabelled: bool = False,
    pseudo: Mapping[str, Any] | None = None,
    compile_losses: bool = False,
    **unknown: Any,
) -> nn.Module:
    """Build a student that learns from a teacher.

    What comes back **is** the student, with the same parameter names, hooks, checkpoints and
    validation; only its ``loss()`` has grown. All that distillation adds to it and that can
    be trained lies in one child, ``kd``.

    Args:
        student: Config of an OpenMMLab model, or a model.
        teacher: See [`kd_dense.mm.teachers.guest.Teacher`][]; several of them by name,
            ``dict(large=..., foreign=...)``, each of which a term may name; or None, where terms
            compare places of the student with each other. See ``docs/teachers.md``.
        terms: Name and fields of each [`kd_dense.mm.distil.term.Term`][].
        inherit: Parts of the student, as ``'neck'``, that start from the teacher's weights, or
            those of the first.
        preset: Name of a method, as ``'cwd'``, or names, as ``['fgd', 'cwd']``, whose settings for
            such models take the place of ``terms`` and ``inherit``; of several teachers
            ``dict(large='fgd', foreign='cwd')``. See ``docs/presets.md``.
        weights: Of a preset: ``'published'``, ``'shares'`` that set themselves, or ``'auto'``. See
            [`kd_dense.mm.presets.choose.choose_preset`][].
        data_preprocessor: For a student whose config has none. mmengine's Runner gives it to
            the model where a config has one beside the model, as those of mmseg have.
        checks: Whether the first iterations are watched, and warnings given where the teacher
            has little to teach or a term is off scale. See
            [`kd_dense.mm.distil.first_steps.FirstSteps`][].
        unlabelled: Whether pictures may come that have no labels, of a
            [`kd_dense.mm.datasets.unlabelled.Unlabelled`][] data set: the terms that need none
            learn from them. See ``docs/unlabelled.md``.
        pseudo: With ``dict(score_thr=0.5)`` terms that need boxes or label maps take the teacher's
            predictions where there are none: see
            [`kd_dense.mm.distil.unlabelled.pseudo.Pseudo`][].
        compile_losses: Whether `torch.compile` fuses the steps of each loss. The first steps
            take longer.

    Returns:
        The student.

    Raises:
        ValueError: If anything does not fit: arguments, taps, losses, shapes, class counts,
            preprocessing. Near names are proposed where a name is unknown.
        FileNotFoundError: If the teacher's config does not exist.

    Examples:
        >>> model = dict(
        ...     type='kd_dense.Distilled',
        ...     student=dict(type='mmseg.EncoderDecoder'),  # the config of a student
        ...     teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        ...     terms=dict(
        ...         cwd=dict(
        ...             tap='decode_head.conv_seg',
        ...             loss=dict(type='CWDLoss', weight=3.0, temperature=4.0))))
    """
    if unknown:
        name = next(iter(unknown))
        remedy = near_names(name, FIELDS)
        if name in ('pretrained', 'train_cfg'):  # which init_model of mmseg adds
            remedy = (
                "for inference give the student's own config, which "
                '`kd_dense export CHECKPOINT --config student.py` writes'
            )
        raise ValueError(f'kd_dense.Distilled has no argument {name!r}, {remedy}')
    if student is teacher:
        raise ValueError(
            'student and teacher are the same object; within one model a teacher of None compares '
            'one tap with another'
        )
    if data_preprocessor is not None and isinstance(student, Mapping):
        config = ConfigDict(student)
        config.setdefault('data_preprocessor', data_preprocessor)
        student = config
    model: Any = student if isinstance(student, nn.Module) else ROOT_MODELS.build(student)
    if is_rotated(model):
        score_in_threads()
    if not callable(getattr(model, 'loss', None)):
        raise ValueError(
            f'the student {type(model).__name__} has no loss(inputs, data_samples), as the '
            'models of mmdet and mmseg have; in plain PyTorch use kd_dense.taps and '
            'kd_dense.losses directly (see the README)'
        )
    if hasattr(model, 'kd'):
        raise ValueError(
            f'the student {type(model).__name__} has an attribute `kd` already: is it '
            'distilled already? Its own may be renamed'
        )
    with kept_random_state():
        teachers = {name: build_one(one, model) for name, one in teachers_of(teacher).items()}
        views_of(one.cache.views for one in teachers.values() if one and one.cache)
        models = {name: model if one is None else one.model for name, one in teachers.items()}
        if preset is not None:
            if terms or inherit:
                raise ValueError('expected either preset, or terms and inherit, got both')
            bearer = next((k for k, one in teachers.items() if has_own_weights(one)), None)
            chosen = choose_for_teachers(preset, model, models, weights, bearer)
            terms, inherit = chosen.terms, chosen.inherit
            print_log(
                f'preset {preset!r} for {chosen}\n'
                '  (kd_dense train --dump-config writes this as a recipe)',
                logger='current',
            )
        elif weights != 'auto':
            raise ValueError(
                f'weights={weights!r} belongs to a preset; a term says it itself, as share=1.0'
            )
        distillation, found = build_terms(model, models, {} if terms is None else terms)
        guests = {}
        for name, one in teachers.items():
            learning = {k: term for k, term in distillation.items() if name in term.teachers}
            guests[name] = None if one is None else Guest(one, found[name], model, learning)
        source = inherited_from(guests, inherit)
        if source is not None:
            check_inherit(model, source.model, inherit)
        rest = None
        if unlabelled or pseudo is not None:
            rest = Unlabelled(
                model, [*distillation.values()], found, pseudo_of(pseudo, model, guests)
            )
    if compile_losses:
        for each in distillation.values():
            cast(Term, each).compile_losses()
    student_taps = Taps(
        chain(*(term.student_taps for term in distillation.values())),
        seams=[term.student_tap for term in distillation.values() if term.shares],
    )
    plan = _Plan(
        guests,
        student_taps,
        any(one.student_by_loss for one in found.values()),
        tuple(inherit),
        checks,
        rest,
    )
    model.__class__ = distilled(type(model))  # type: ignore[arg-type]
    model.kd = nn.ModuleDict(distillation)
    model.kd_plan = plan
    return cast(nn.Module, model)


class _Plan:
    """What a distilled student keeps beside its parameters."""

    def __init__(
        self,
        guests: Mapping[str, Guest | None],
        student_taps: Taps,
        student_by_loss: bool,
        inherit: tuple[str, ...],
        checks: bool,
        unlabelled: Unlabelled | None,
    ) -> None:
        self.guests = guests  # by name; None is the student itself
        self.student_taps = student_taps
        self.student_by_loss = student_by_loss  # as `Teacher.by_loss`
        self.inherit = inherit
        self.finite = FiniteCheck()
        self.meter = ShareMeter()
        self.first_steps = FirstSteps() if checks else None
        self.unlabelled = unlabelled

    @property
    def running(self) -> dict[str, Guest]:
        """The teachers that are models of their own."""
        return {name: guest for name, guest in self.guests.items() if guest is not None}

    @property
    def guest(self) -> Guest:
        """The only teacher, or the first."""
        return next(iter(self.running.values()))

    @property
    def teacher(self) -> Teacher:
        """The only teacher, or the first, without what is wanted of it."""
        return self.guest.teacher

    def leads(self, term: Term) -> bool:
        """Whether a term says something before the training, when averages are the student."""
        guests = [self.guests[name] for name in term.teachers]
        return any(one is None or has_own_weights(one.teacher) for one in guests)

    def run(self, model: Any, terms: Sequence[Term], inputs: Any, samples: Any) -> None:
        """Run the teachers that these terms of the student learn from."""
        inputs = as_teachers_see(model, inputs, samples)
        for name, guest in self.running.items():
            if isinstance(guest.teacher, AverageTeacher):
                guest.teacher.start(bare(model))
            taps = [*chain(*(term.teacher_taps for term in terms if name in term.teachers))]
            if taps:
                guest.run(taps, inputs, samples)

    def clear(self) -> None:
        """Drop what was recorded in a step."""
        self.student_taps.clear()
        for guest in self.running.values():
            guest.taps.clear()
        if self.unlabelled is not None:
            self.unlabelled.clear()

    def taught(self, step: Step, terms: Mapping[str, Term]) -> dict[str, tuple[Step, Any]]:
        """For each term the step as it sees it, and what was gathered of that."""
        for guest in self.running.values():
            guest.wait()
        found: dict[str, tuple[Step, Any]] = {}
        kinds = {name: (term.teachers, term.loss.of_teachers) for name, term in terms.items()}
        for kind in dict.fromkeys(kinds.values()):
            group = {name: term for name, term in terms.items() if kinds[name] == kind}
            one = taught(step, [self.guests[name] for name in kind[0]], [*group.values()])
            needs = gather(chain(*(term.needs for term in group.values())), one)
            found |= dict.fromkeys(group, (one, needs))
        return found


class _Distilling:
    """What is mixed into the class of a student."""

    kd: Any  # terms by name
    kd_plan: _Plan

    def init_weights(self) -> None:
        """Initialise the student as if it were alone; then teacher and inheritance."""
        kd = self._modules.pop('kd')  # type: ignore[attr-defined]
        try:
            super().init_weights()  # type: ignore[misc]
        finally:
            self._modules['kd'] = kd  # type: ignore[attr-defined]
        plan = self.kd_plan
        for guest in plan.running.values():
            guest.teacher.load()
        source = inherited_from(plan.guests, plan.inherit)
        if source is not None:
            inherit_parts(self, source.model, plan.inherit)  # type: ignore[arg-type]

    def loss(self, inputs: Tensor, data_samples: Any, *args: Any, **kwargs: Any) -> Any:
        """The student's own losses, and one more for each term."""
        plan = self.kd_plan
        own_loss = partial(super().loss, *args, **kwargs) if args or kwargs else super().loss  # type: ignore[misc]
        pictures = sort_pictures(plan.unlabelled, inputs, data_samples)
        factors = _factors(self.kd, plan.running)
        active = [term for name, term in self.kd.items() if factors[name]]
        if active:
            # The teachers go first: what they need is free again before the student's graph
            # grows.
            _run_teachers(self, active, pictures)
            plan.student_taps.start(self, [*chain(*(term.student_taps for term in active))])
        try:
            if plan.unlabelled is not None and pictures.mixed:
                losses = plan.unlabelled.loss(self, own_loss, pictures, plan.student_taps, active)
            else:
                losses = own_loss(inputs, data_samples)
            plan.student_taps.stop()
            added = _distil(self, losses, factors, pictures)
            if plan.unlabelled is not None:
                added = plan.unlabelled.in_touch(added)
            losses.update(added)
        finally:
            plan.student_taps.stop()
            plan.clear()
        return losses

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.kd_plan.first_steps is not None:
            self.kd_plan.first_steps.student_is_trained = True
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _new, (own_class(type(self)),), self.__dict__


@cache
def distilled(cls: Any) -> type:
    """The class of a distilled student, a subclass of its own class."""
    return type(f'Distilled{cls.__name__}', (_Distilling, cls), {'__module__': __name__})


def own_class(cls: type) -> Any:
    """The class that a student had before it was distilled, from what [`distilled`][] returned."""
    return cls.__mro__[2]


def bare(model: Any) -> Any:
    """The student without what distillation has added, of its own class.

    Args:
        model: A distilled student. It stays as it is, and shares its parameters and parts with
            what is returned; copy that where it is to be a model of its own.
    """
    student = object.__new__(own_class(type(model)))
    student.__dict__ = {name: value for name, value in vars(model).items() if name != 'kd_plan'}
    student._modules = {name: part for name, part in model._modules.items() if name != 'kd'}
    return student


def _new(cls: type) -> Any:
    return object.__new__(distilled(cls))


@torch.compiler.disable
def _factors(kd: Any, guests: Mapping[str, Guest]) -> dict[str, float]:
    found = {}
    for name, term in kd.items():
        every = (guests[one].teacher.every for one in term.teachers if one in guests)
        found[name] = term.factor() * share_now(lcm(*every))
    return found


@torch.compiler.disable
def _run_teachers(model: Any, active: Sequence[Term], pictures: Pictures) -> None:
    plan = model.kd_plan
    plan.run(model, active, pictures.inputs, pictures.samples)
    if plan.first_steps is not None and pictures.real:
        plan.first_steps.before(model, *pictures.with_labels)


def _ran(term: Term, plan: _Plan) -> bool:
    """Whether there is something to compare: a cascade ends early where no RoI is left."""
    return term.rois is None or bool(plan.student_taps.calls(term.rois.targets))


def _whose(term: Term, plan: _Plan) -> str:
    """What messages call the maps of a term's teachers."""
    several = len(plan.guests) > 1
    return term.teacher_tap + f' ({", ".join(term.teachers)})' * several


@torch.compiler.disable
def _distil(
    model: Any, task: Mapping[str, Any], factors: Mapping[str, float], pictures: Pictures
) -> dict[str, Tensor]:
    plan = model.kd_plan
    losses: dict[str, Tensor] = {}
    ours: dict[str, Sequence[Tensor]] = {}
    theirs: dict[str, Sequence[Tensor]] = {}
    active = {name: term for name, term in model.kd.items() if factors[name] and _ran(term, plan)}
    step = Step(model, pictures.inputs, pictures.samples, plan.student_taps)
    plan.meter.start()
    steps: dict[str, tuple[Step, Any]] = {}
    for view, terms in views(plan.unlabelled, step, pictures, active):
        steps |= plan.taught(view, terms)
    for name, term in model.kd.items():
        if name not in steps:
            losses.update(term.idle(any_tensor(pictures.inputs)))
            continue
        step, found = steps[name]
        student, teacher = term.maps(step)
        needs = term.needed(step, found)
        if term.shares:
            added = term.shared(step, factors[name], needs, plan.meter)
        else:
            added = term(student, teacher, factors[name], needs)
        losses.update(pictures.weighed(term, added))
        ours[term.student_tap], theirs[_whose(term, plan)] = student, teacher
    plan.finite.check(losses, theirs, ours)
    if plan.first_steps is not None:
        weighed = {name: factors[name] * plan.leads(term) for name, term in model.kd.items()}
        plan.first_steps.after({**task, **losses}, model.kd, weighed)
    return losses
