"""A student that distils while it trains, and is otherwise itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, cast

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from kd_dense.mm.batches.boxes import is_rotated
from kd_dense.mm.batches.channels import input_channels
from kd_dense.mm.batches.made_up import any_tensor
from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.batches.targets import Step, gather
from kd_dense.mm.distil.first_steps import FirstSteps
from kd_dense.mm.distil.fitting import build_terms
from kd_dense.mm.distil.shared_rois import with_teacher_on_rois
from kd_dense.mm.distil.term import Term
from kd_dense.mm.distil.unlabelled import Pictures, Unlabelled, sort_pictures, views
from kd_dense.mm.finite import FiniteCheck
from kd_dense.mm.models.inherit import check_inherit, inherit_parts
from kd_dense.mm.models.probe import Probe
from kd_dense.mm.presets.choose import Weights, choose_preset
from kd_dense.mm.randomness import kept_random_state
from kd_dense.mm.stack.install import score_in_threads
from kd_dense.mm.teachers.guest import Teacher
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
)


@MODELS.register_module()
def Distilled(  # noqa: N802  (a type in configs)
    student: Mapping[str, Any] | nn.Module,
    teacher: str | Mapping[str, Any] | nn.Module,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
    inherit: Sequence[str] = (),
    preset: str | Sequence[str] | None = None,
    weights: Weights = 'auto',
    data_preprocessor: Mapping[str, Any] | None = None,
    checks: bool = True,
    unlabelled: bool = False,
    **unknown: Any,
) -> nn.Module:
    """Build a student that learns from a teacher.

    What comes back **is** the student, with the same parameter names, hooks, checkpoints and
    validation; only its ``loss()`` has grown. All that distillation adds to it and that can
    be trained lies in one child, ``kd``.

    Args:
        student: Config of an OpenMMLab model, or a model.
        teacher: See [`kd_dense.mm.teachers.guest.Teacher`][].
        terms: Name and fields of each [`kd_dense.mm.distil.term.Term`][].
        inherit: Parts of the student, as ``'neck'``, that start from the teacher's weights.
        preset: Name of a method, as ``'cwd'``, or names, as ``['fgd', 'cwd']``, whose settings for
            such models take the place of ``terms`` and ``inherit``. See ``docs/presets.md``.
        weights: Of a preset: ``'published'``, ``'shares'`` that set themselves, or ``'auto'``. See
            [`kd_dense.mm.presets.choose.choose_preset`][].
        data_preprocessor: For a student whose config has none. mmengine's Runner gives it to
            the model where a config has one beside the model, as those of mmseg have.
        checks: Whether the first iterations are watched, and warnings given where the teacher
            has little to teach or a term is off scale. See
            [`kd_dense.mm.distil.first_steps.FirstSteps`][].
        unlabelled: Whether pictures may come that have no labels, of a
            [`kd_dense.mm.data.unlabelled.Unlabelled`][] data set: the terms that need none learn
            from them. See ``docs/unlabelled.md``.

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
        raise ValueError('student and teacher are the same object; a model cannot teach itself')
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
        guest = Teacher(teacher)
        if preset is not None:
            if terms or inherit:
                raise ValueError('expected either preset, or terms and inherit, got both')
            chosen = choose_preset(preset, model, guest.model, weights)
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
        distillation, found = build_terms(model, guest.model, {} if terms is None else terms)
        guest.by_loss = found.by_loss
        check_inherit(model, guest.model, inherit)
        guest.check_taps(found.teacher)
        rest = Unlabelled(model, [*distillation.values()], found) if unlabelled else None
    student_taps = Taps(
        chain(*(term.student_taps for term in distillation.values())),
        seams=[term.student_tap for term in distillation.values() if term.shares],
    )
    channels = input_channels(model), input_channels(guest.model)
    preprocess = Repreprocess(model.data_preprocessor, guest.model.data_preprocessor, channels)
    if channels[0] != channels[1]:
        print_log(
            'the images of the student have {} channels, those of the teacher {}: they are '
            'converted for it, between grey and colour'.format(*channels),
            logger='current',
        )

    model.__class__ = distilled(type(model))  # type: ignore[arg-type]
    model.kd = nn.ModuleDict(distillation)
    model.kd_plan = _Plan(guest, student_taps, found, preprocess, tuple(inherit), checks, rest)
    return cast(nn.Module, model)


class _Plan:
    """What a distilled student keeps beside its parameters."""

    def __init__(
        self,
        teacher: Teacher,
        student_taps: Taps,
        found: Probe,
        preprocess: Repreprocess,
        inherit: tuple[str, ...],
        checks: bool,
        unlabelled: Unlabelled | None,
    ) -> None:
        self.teacher = teacher
        self.student_taps = student_taps
        self.student_by_loss = found.student_by_loss  # as `Teacher.by_loss`
        self.teacher_taps = Taps(found.teacher)
        self.teacher_calls = {tap: one.calls for tap, one in found.teacher.items()}
        self.preprocess = preprocess
        self.inherit = inherit
        self.finite = FiniteCheck()
        self.meter = ShareMeter()
        self.first_steps = FirstSteps() if checks else None
        self.unlabelled = unlabelled


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
        plan.teacher.load()
        inherit_parts(self, plan.teacher.model, plan.inherit)  # type: ignore[arg-type]

    def loss(self, inputs: Tensor, data_samples: Any, *args: Any, **kwargs: Any) -> Any:
        """The student's own losses, and one more for each term."""
        plan = self.kd_plan
        own_loss = partial(super().loss, *args, **kwargs) if args or kwargs else super().loss  # type: ignore[misc]
        pictures = sort_pictures(plan.unlabelled, inputs, data_samples)
        factors = _factors(self.kd)
        active = [term for name, term in self.kd.items() if factors[name]]
        if active:
            # The teacher goes first: what it needs is free again before the student's graph
            # grows.
            _run_teacher(self, active, pictures)
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
            plan.student_taps.clear()
            plan.teacher_taps.clear()
            if plan.unlabelled is not None:
                plan.unlabelled.clear()
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
def _factors(kd: Any) -> dict[str, float]:
    return {name: term.factor() for name, term in kd.items()}


@torch.compiler.disable
def _run_teacher(model: Any, active: Sequence[Term], pictures: Pictures) -> None:
    plan = model.kd_plan
    calls = {tap: plan.teacher_calls[tap] for term in active for tap in term.teacher_taps}
    batch = pictures.inputs, pictures.samples
    plan.teacher.run(plan.teacher_taps, calls, plan.preprocess, *batch)
    if plan.first_steps is not None and pictures.real:
        batch = pictures.with_labels
        plan.first_steps.before(model, plan.teacher, plan.preprocess, *batch)


def _ran(term: Term, plan: _Plan) -> bool:
    """Whether there is something to compare: a cascade ends early where no RoI is left."""
    return term.rois is None or bool(plan.student_taps.calls(term.rois.targets))


@torch.compiler.disable
def _distil(
    model: Any, task: Mapping[str, Any], factors: Mapping[str, float], pictures: Pictures
) -> dict[str, Tensor]:
    plan = model.kd_plan
    plan.teacher.wait(plan.teacher_taps)
    losses: dict[str, Tensor] = {}
    ours: dict[str, Sequence[Tensor]] = {}
    theirs: dict[str, Sequence[Tensor]] = {}
    active = {name: term for name, term in model.kd.items() if factors[name] and _ran(term, plan)}
    step = Step(
        model,
        pictures.inputs,
        pictures.samples,
        plan.student_taps,
        plan.teacher_taps,
        plan.teacher.model,
    )
    plan.meter.start()
    steps: dict[str, tuple[Step, Any]] = {}
    for view, terms in views(plan.unlabelled, step, pictures, active):
        shared = [term.rois for term in terms.values() if term.rois is not None]
        one = with_teacher_on_rois(plan.teacher, shared, view)
        found = gather(chain(*(term.needs for term in terms.values())), one)
        steps |= dict.fromkeys(terms, (one, found))
    for name, term in model.kd.items():
        if name not in steps:
            losses.update(term.idle(any_tensor(pictures.inputs)))
            continue
        one, found = steps[name]
        student, teacher = term.maps(one)
        needs = term.needed(one, found)
        if term.shares:
            added = term.shared(one, factors[name], needs, plan.meter)
        else:
            added = term(student, teacher, factors[name], needs)
        losses.update(pictures.weighed(term, added))
        ours[term.student_tap], theirs[term.teacher_tap] = student, teacher
    plan.finite.check(losses, theirs, ours)
    if plan.first_steps is not None:
        plan.first_steps.after({**task, **losses}, model.kd, factors)
    return losses
