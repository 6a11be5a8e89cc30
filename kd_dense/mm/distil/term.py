"""One summand of the distillation loss: tap, loss, adapters, schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_dense.functional import without_autocast
from kd_dense.losses import DistillLoss
from kd_dense.mm.batches.made_up import any_tensor
from kd_dense.mm.batches.queries import as_queries, own_queries
from kd_dense.mm.batches.targets import NEEDS, Step
from kd_dense.mm.distil.adapting import Fitting
from kd_dense.mm.distil.fields import (
    WHOLE,
    build_losses,
    build_schedule,
    build_shares,
    check_kinds,
    factor_now,
    tap_names,
    teacher_names,
)
from kd_dense.mm.distil.shared_rois import SharedRoIs
from kd_dense.mm.distil.tokens import as_maps, for_each_branch, shapes_as_maps
from kd_dense.mm.models.probe import Yield, needs_features_only
from kd_dense.mm.wording import spelt
from kd_dense.shares import Share, ShareMeter
from kd_dense.taps import TapError, near_names

__all__ = ['Term']

FIELDS = ('tap', 'loss', 'teacher', 'share', 'adapter', 'schedule', 'shared_rois', 'cross_at')


class Term(nn.Module):
    """A tap in both models and the loss that compares what they yield.

    Args:
        name: What the log calls it, as ``loss_kd_<name>``.
        tap: A tap, or ``dict(student=..., teacher=...)`` where the names differ.
        loss: Config of a loss, or a loss.
        teacher: Of several teachers the one that is compared with, by its name; or a list of
            them, the mean of whose maps is. See ``docs/teachers.md``.
        share: How strongly the term pulls at the student's maps, as a share of what the losses
            of the task do: see [`kd_dense.shares.Share`][]. One for the whole loss, whose own
            weights then only say how its parts stand to each other; or one for each part, as
            ``dict(foreground=0.5, relation=0.1)``, where those that are not named are off.
        adapter: ``True`` adds an [`kd_dense.adapters.Adapter`][] to each map that needs
            one, and resizes others on images where their sizes differ; ``False`` makes a
            difference of shape an error; and a config builds another module, which is given
            ``in_channels`` and ``out_channels``.
        schedule: Arguments of [`kd_dense.schedules.Schedule`][].
        shared_rois: For taps in the box head of a detector with region proposals, as
            ``'roi_head.bbox_head.fc_cls'``: the teacher's box head is run on the regions that the
            student has sampled in this step. What is compared has a row for each of them.

    Raises:
        ValueError: If a field is missing, unknown or of the wrong kind.
    """

    def __init__(
        self,
        name: str,
        /,
        tap: str | Mapping[str, str] | None = None,
        loss: Mapping[str, Any] | DistillLoss | None = None,
        teacher: str | Sequence[str] | None = None,
        share: float | Mapping[str, float] | None = None,
        adapter: bool | Mapping[str, Any] = True,
        schedule: Mapping[str, Any] | None = None,
        shared_rois: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.name = name
        unknown.pop('_scope_', None)
        if unknown:
            raise ValueError(
                f'term {name!r}: unknown field {next(iter(unknown))!r}, '
                f'{near_names(next(iter(unknown)), FIELDS)}; what belongs to the loss, as its '
                "weight, is said in loss=dict(type='CWDLoss', ...)"
            )
        if not tap:
            raise ValueError(f"term {name!r} has no tap: say tap='neck', for example")
        if loss is None or loss == {}:
            raise ValueError(
                f"term {name!r} has no loss: say loss=dict(type='CWDLoss'), for example"
            )
        check_kinds(name, adapter, shared_rois)
        self.student_tap, self.teacher_tap = taps = tap_names(name, tap)
        self.rois = SharedRoIs.of(name, *taps) if shared_rois else None
        self.run_to = taps  # how far both models run, unasked
        self.teachers = teacher_names(name, teacher)
        self.within = False  # whether the student itself stands for the teacher
        self.losses = nn.ModuleList()  # one for all maps, or one for each
        self.compiled = False
        self.adapter = adapter
        self.adapters = nn.ModuleList()
        self._config = loss
        self.row: tuple[int, ...] = ()  # the shape of what the teacher yields for an image or RoI
        self.shares = build_shares(name, share)
        self.schedule = build_schedule(name, {} if schedule is None else schedule)

    def build_losses(
        self, student: Yield, teacher: Yield, given: Mapping[str, Any] | None = None
    ) -> None:
        """Build the loss, or one for each map where it depends on their width.

        Args:
            student: What the tap yields in the student, tokens as maps.
            teacher: What it yields in the teacher.
            given: What a loss gets that has an argument of that name, as ``num_classes``.

        Raises:
            ValueError: If there is no such loss, or it refuses its arguments.
        """
        shapes = student.shapes, teacher.shapes
        through = isinstance(self.adapter, Mapping)
        self.losses.extend(build_losses(self.name, self._config, *shapes, given or {}, through))
        for part in {*self.shares} - {WHOLE, *self.loss.parts}:
            raise ValueError(
                f'term {self.name!r}: share: {type(self.loss).__name__} has no part {part!r}, '
                + (near_names(part, self.loss.parts) if self.loss.parts else 'nor any other one')
            )
        for need in self.loss.needs:
            if need not in NEEDS:
                raise ValueError(
                    f'term {self.name!r}: {type(self.loss).__name__} needs {need!r}, which is '
                    f'nothing that is known, {near_names(need, NEEDS)}'
                )

    def fit(self, student: Yield, teacher: Yield) -> None:
        """Build an adapter for each pair of maps that needs one.

        Args:
            student: What the tap yields in the student, tokens as maps.
            teacher: What it yields in the teacher.

        Raises:
            ValueError: If the numbers of maps differ, or shapes differ and cannot be adapted.
        """
        fitting = self.fitting
        if self.loss.of_queries:
            fitting.check_no_adapter()
        elif len(student.shapes) != len(teacher.shapes):
            raise ValueError(
                f'term {self.name!r}: tap {self.student_tap!r} yields {len(student.shapes)} '
                f'maps {spelt(student.shapes)} in the student and tap {self.teacher_tap!r} '
                f'{len(teacher.shapes)} maps {spelt(teacher.shapes)} in the teacher; choose among '
                "them with an index, as in 'neck[:4]'"
            )
        else:
            for ours, theirs in zip(student.shapes, teacher.shapes, strict=True):
                self.adapters.append(fitting.adapter_for(ours, theirs))
        self.row = teacher.shapes[0][1:]
        # A term that is switched off for good must not change training at all: a trainable
        # adapter would take part in gradient clipping, if only with zeros.
        if self.loss.weight == 0:
            self.requires_grad_(False)

    def compile_losses(self) -> None:
        """Have the loss compiled when it is first used; copies of the term use it as it is."""
        self.compiled = True
        for loss in self.losses:
            loss.compile()

    @property
    def loss(self) -> DistillLoss:
        """The loss, or that of the first map."""
        return cast(DistillLoss, self.losses[0])

    @property
    def adaptable(self) -> bool:
        """Whether an adapter may lie between student and teacher."""
        return self.loss.adaptable

    @property
    def fitting(self) -> Fitting:
        """How one of its maps is given the shape of another one."""
        on_rois = self.rois is not None
        return Fitting(self.name, self.loss, self.adapter, self.adaptable, on_rois)

    @property
    def student_taps(self) -> list[str]:
        """All that must be recorded in the student."""
        if self.rois is not None:
            return [self.student_tap, self.rois.targets]
        needs = [NEEDS[need] for need in self.loss.needs]
        own = self.teacher_reach if self.within else []
        return [self.student_tap, *own, *chain(*(need.taps + need.loss_taps for need in needs))]

    @property
    def teacher_taps(self) -> list[str]:
        """All that must be recorded in the teacher, on its own."""
        needs = [NEEDS[need] for need in self.needs]
        return [*self.teacher_reach, *chain(*(need.taps + need.teacher_taps for need in needs))]

    @property
    def needs(self) -> tuple[str, ...]:
        """What the loss needs of a batch; on RoIs it needs what is known of these."""
        return () if self.rois is not None else self.loss.needs

    def needed(self, step: Step, found: Mapping[str, Any]) -> dict[str, Any]:
        """What the loss needs beside the maps of a step.

        Args:
            step: The step.
            found: What was gathered of the batch.
        """
        if self.rois is not None:
            return self.rois.needed(self.loss.needs, step)
        return {need: found[need] for need in self.needs}

    @property
    def teacher_reach(self) -> list[str]:
        """How far the teacher runs, unasked by the loss."""
        return [self.run_to[1]]

    @property
    def paired_tap(self) -> str:
        """Where the teacher yields a map for each of the student's."""
        return self.teacher_tap

    @property
    def one_teacher(self) -> bool:
        """Whether it wants more of a teacher than maps, so that there is no mean of several."""
        reads = any(NEEDS[need].one_teacher for need in self.needs)
        return reads or self.rois is not None or self.loss.of_queries

    @property
    def of_features(self) -> bool:
        """Whether both taps lie in backbone or neck."""
        return needs_features_only([self.student_tap, self.teacher_tap])

    def maps(
        self, step: Step, alias: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of student and teacher in a step, tokens as maps; or all that is of queries.

        Args:
            step: The step.
            alias: Gives what stands for the maps of the student, whose gradients are measured.
        """
        if self.rois is not None:  # a sampler may have run the box head before
            student = step.student_taps[self.student_tap][-1:]
            student = student if alias is None else [*alias(student)]
            teacher = [step.on_rois[self.name]]
        else:
            student = step.student_maps(self.student_tap, alias)
            teacher = [*step.teacher_taps[self.teacher_tap]]
        if self.loss.of_queries:
            own = own_queries(step.student, self.student_tap)
            return as_queries(student, own), as_queries(teacher)
        return as_maps(student, teacher, any_tensor(step.inputs).shape[-2:], self.of_features)

    def factor(self) -> float:
        """The schedule's factor now; 0 means that the term is off in this iteration."""
        if self.loss.weight == 0:
            return 0.0
        return factor_now(self.name, self.schedule)

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        factor: float,
        needs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compare the maps of a step.

        Args:
            student: The student's maps, as [`maps`][kd_dense.mm.distil.term.Term.maps] has them.
            teacher: The teacher's maps.
            factor: The schedule's factor.
            needs: What the loss needs beside them, by name.

        Returns:
            The weighted loss, or each of its parts, summed over the maps, by its name in the
            log.

        Raises:
            TapError: If the maps are not those that the taps yielded when the model was built,
                or no gradient flows back from those of the student.
        """
        if not self.fits(student, teacher):
            raise TapError(
                f'term {self.name!r}: expected {len(self.adapters)} maps, got {len(student)} '
                f'of the student and {len(teacher)} of the teacher: tap {self.student_tap!r} or '
                f'{self.teacher_tap!r} yields other maps in training than in a forward pass; tap '
                'another module, or choose maps with an index'
            )
        if torch.is_grad_enabled() and not all(x.requires_grad for x in student):
            raise TapError(
                f'term {self.name!r}: no gradient flows back from tap {self.student_tap!r} of the '
                'student, which therefore learns nothing there: the layers up to it are '
                'frozen, or it lies inside a block with activation checkpointing; tap a later '
                'layer'
            )
        if not self.loss.of_queries:
            teacher = [for_each_branch(t, len(student[0])) for t in teacher]
        ours, theirs = self.compared(student, teacher)
        with without_autocast(student[0]):
            if self.loss.all_maps:
                result = self.loss(ours, theirs, **needs)
            else:
                # What is compiled is one map, and fused more than what takes all at once.
                over_maps = DistillLoss.over_maps if self.compiled else self.loss.over_maps
                result = over_maps([*self.losses], ours, theirs, **needs)
        found = result if self.loss.parts else {'': result}
        return {self._key(part): factor * found[part] for part in self.loss.parts or ('',)}

    def shared(
        self, step: Step, factor: float, needs: Mapping[str, Any], meter: ShareMeter
    ) -> dict[str, Tensor]:
        """Compare the maps of a step, with the weights that the shares ask for.

        Args:
            step: The step.
            factor: The schedule's factor.
            needs: What the loss needs beside the maps, by name.
            meter: Measures what pulls at the maps.

        Returns:
            As [`forward`][kd_dense.mm.distil.term.Term.forward]; and, for the log, the weight as
            ``kd_weight_<name>`` and the share that the last step measured as ``kd_share_<name>``.
        """
        found: dict[str, Tensor] = {}
        for part, module in self.shares.items():
            share = cast(Share, module)
            student, teacher = self.maps(step, partial(meter.aliases, share))
            losses = self(student, teacher, 1.0, needs)
            if part != WHOLE:
                losses = {self._key(part): losses[self._key(part)]}
            weight = meter.weigh(share, torch.stack([*losses.values()]).sum(), factor)
            found |= {key: weight * loss for key, loss in losses.items()}
            own = self.name if part == WHOLE else f'{self.name}.{part}'
            found |= {f'kd_weight_{own}': weight, f'kd_share_{own}': share.pull.clone()}
        return found

    def fits(self, student: list[Tensor], teacher: list[Tensor]) -> bool:
        """Whether these are as many maps as the taps yielded when the model was built."""
        if self.loss.of_queries:
            return True
        return len(student) == len(teacher) == len(self.adapters)

    def compared(
        self, student: list[Tensor], teacher: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the loss is given of the maps of student and teacher."""
        return self.adapted(student, teacher), teacher

    def adapted(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """The student's maps as the loss is given them, behind their adapters.

        Maps that agree on the images that were tried out need not agree on others: models round
        in their own ways, and all strides meet on an image that is small enough.

        Raises:
            ValueError: If sizes differ where they did not, and the student's may not be resized.
        """
        if self.loss.of_queries:
            return student
        return [
            self.fitting.resized(x, t)
            if isinstance(adapter, nn.Identity)
            else adapter(x, t.shape[-2:])
            for adapter, x, t in zip(self.adapters, student, teacher, strict=True)
        ]

    def ways(self, student: Yield, teacher: Yield, image: Sequence[int]) -> list[str]:
        """What each map of the student goes through where the taps yield this.

        Args:
            student: What the tap yields in the student, on images of any size.
            teacher: What it yields in the teacher, on the same ones.
            image: Their size.

        Returns:
            For each map the class of its adapter, ``'resized'``, or nothing where it is compared
            as it is.
        """
        if self.loss.of_queries:
            return []
        student, teacher = shapes_as_maps(student, teacher, image, self.of_features)
        agree = self.fitting.agree
        resized = [not agree(*both) for both in zip(student.shapes, teacher.shapes, strict=True)]
        return [
            ('resized' * differ) if isinstance(adapter, nn.Identity) else type(adapter).__name__
            for adapter, differ in zip(self.adapters, resized, strict=True)
        ]

    def idle(self, like: Tensor) -> dict[str, Tensor]:
        """What the term contributes while it is off: zero, in touch with its parameters.

        A parameter without gradient would make DDP wait for it forever.
        """
        zero = like.new_zeros((), dtype=torch.float32)
        for parameter in self.parameters():
            if parameter.requires_grad:
                zero = zero + 0 * parameter.sum()
        return {self._key(part): zero for part in self.loss.parts or ('',)}

    def _key(self, part: str) -> str:
        return f'loss_kd_{self.name}.{part}' if part else f'loss_kd_{self.name}'
