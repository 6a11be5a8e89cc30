"""What losses need beside the maps of their tap, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_dense.losses.features.masked import Anchors
from kd_dense.losses.queries.features import TaughtQueries, rate_queries
from kd_dense.mm.batches import decoders, head_boxes, head_targets
from kd_dense.mm.batches.boxes import upright
from kd_dense.mm.batches.made_up import any_tensor, labelled_samples
from kd_dense.mm.batches.queries import as_queries
from kd_dense.taps import TapError, Taps

__all__ = ['NEEDS', 'Need', 'Step', 'gather']


class Step(NamedTuple):
    """All that is known once the student's own loss has been computed.

    ``teacher`` is the teacher of some of the terms, and ``teacher_taps`` what it has yielded.
    ``on_rois`` are the teacher's maps on the student's RoIs, by the name of their term. ``rows``
    is set where the step is that of the first pictures of a batch, as (how many, of how many):
    those that have labels.
    """

    student: Any
    inputs: Any
    data_samples: Any
    student_taps: Any  # Taps, or what puts together what they have recorded of parts of a batch
    teacher_taps: Any = MappingProxyType({})
    teacher: Any = None
    on_rois: Mapping[str, Tensor] = MappingProxyType({})
    rows: tuple[int, int] | None = None

    @property
    def labelled(self) -> Sequence[Any]:
        """A sample for each image whose maps are compared with its labels."""
        return labelled_samples(self.data_samples)

    def student_maps(
        self, tap: str, alias: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    ) -> list[Tensor]:
        """The maps of a tap of the student.

        Args:
            tap: The tap.
            alias: Gives what stands for maps as they were recorded, whose gradients are measured.
        """
        if not isinstance(self.student_taps, Taps):  # of pictures with and without labels
            return [*self.student_taps.maps(tap, alias)]
        maps = self.student_taps[tap]
        return maps if alias is None else [*alias(maps)]


class Need(NamedTuple):
    """Something a loss may ask for by its name.

    Attributes:
        read: Reads it off a step.
        taps: What must be recorded in both models for it.
        loss_taps: What must be recorded while the student computes its own loss.
        teacher_taps: What must be recorded in the teacher alone.
        check: Called with student and teacher when the model is built; raises where they can
            never provide it.
        one_teacher: Whether it is read off the teacher itself, beyond its maps.
    """

    read: Callable[[Step], Any]
    taps: tuple[str, ...] = ()
    loss_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    check: Callable[[Any, Any], None] | None = None
    one_teacher: bool = False


def _refuse(need: str, part: str) -> Callable[[Any, Any], None]:
    """A check that the student lacks a part which tells that it is trained without a need."""

    def check(student: Any, teacher: Any) -> None:
        if hasattr(student, part):
            raise ValueError(
                f'a loss needs {need}, but the student {type(student).__name__} has a {part}: '
                f'it is trained without {need}'
            )

    return check


def _boxes(step: Step) -> list[Tensor]:
    return [upright(_of(sample, 'gt_instances', 'boxes').bboxes) for sample in step.labelled]


def _labels(step: Step) -> list[Tensor]:
    return [_of(sample, 'gt_instances', 'labels').labels for sample in step.labelled]


def _segmentation(step: Step) -> Tensor:
    found = [_of(sample, 'gt_sem_seg', 'segmentation') for sample in step.labelled]
    maps = [one.get('data', one.get('sem_seg')) for one in found]  # mmseg's name and mmdet's
    return torch.stack([m.reshape(m.shape[-2:]) for m in maps]).long()


def _of(sample: Any, field: str, need: str) -> Any:
    if field not in sample:
        raise ValueError(
            f'a loss needs {need!r}, but the data samples have no {field}: is this a loss for '
            'another kind of model, or does the data pipeline leave it out?'
        )
    return sample.get(field)


def _batch_shape(step: Step) -> tuple[int, int]:
    height, width = any_tensor(step.inputs).shape[-2:]
    return height, width


def _head_targets(step: Step) -> Any:
    head, calls = step.student.bbox_head, step.student_taps.returned('bbox_head.get_targets')
    if len(calls) != 1:
        raise TapError(
            f'a loss needs the targets of the student, whose head {type(head).__name__} was '
            f'expected to compute them once in a step with get_targets, and did so {len(calls)} '
            'times'
        )
    maps = step.student_taps['bbox_head']
    return head_targets.read(head, calls[0], maps, step.labelled)


def _rpn_outputs(step: Step) -> tuple[Any, Any]:
    return step.student_taps['rpn_head'], step.teacher_taps['rpn_head']


def _check_rpn(student: Any, teacher: Any) -> None:
    for whose, model in (('student', student), ('teacher', teacher)):
        if not hasattr(model, 'rpn_head'):
            raise ValueError(
                f'a loss needs the region proposals of both models, and the {whose} '
                f'{type(model).__name__} has no rpn_head'
            )


def _anchors(step: Step) -> Anchors:
    generator, device = _anchor_generator(step.student), any_tensor(step.inputs).device
    base = [x.to(device, non_blocking=True) for x in generator.base_anchors]
    return Anchors(base, generator.strides)


def _check_anchors(student: Any, teacher: Any) -> None:
    generator = _anchor_generator(student)
    if not hasattr(generator, 'base_anchors') or generator.base_anchors[0].shape[1] != 4:
        raise ValueError(
            f'a loss needs the upright anchor boxes of the student, and {type(student).__name__} '
            'has none: take a loss that needs boxes alone, as DeFeatLoss'
        )


def _anchor_generator(model: Any) -> Any:
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    return getattr(head, 'prior_generator', None)


def _taught_queries(step: Step) -> TaughtQueries:
    states, *_ = step.teacher_taps['forward_decoder']
    predicted = as_queries(step.teacher_taps['bbox_head'])
    layers = len(states)
    return rate_queries(
        states.unbind(),
        predicted[:layers],
        predicted[layers:],
        _boxes(step),
        _image_shapes(step),
        sigmoid=step.teacher.bbox_head.loss_cls.use_sigmoid,
    )


def _check_decoder(student: Any, teacher: Any) -> None:
    """Make sure that the teacher has queries."""
    if not (hasattr(teacher, 'forward_decoder') and hasattr(teacher, 'bbox_head')):
        raise ValueError(
            f'a loss needs the queries of the teacher, and {type(teacher).__name__} has no '
            'decoder with any: take a DETR, or another loss'
        )
    _refuse('boxes', 'decode_head')(student, teacher)


def _image_shapes(step: Step) -> list[tuple[int, int]]:
    return [tuple(s.metainfo['img_shape'][:2]) for s in step.labelled]


NEEDS = {
    # per image (n, 4): x1, y1, x2, y2 in pixels of the batch, around boxes that are rotated
    'boxes': Need(_boxes, check=_refuse('boxes', 'decode_head')),
    'labels': Need(  # per image the class of each of its boxes, (n,)
        _labels, check=_refuse('labels of boxes', 'decode_head')
    ),
    'batch_shape': Need(_batch_shape),  # height and width of the padded batch
    'image_shapes': Need(_image_shapes),  # per image height and width, without padding
    'segmentation': Need(  # label maps (N, H, W), ignored pixels as in the data
        _segmentation, check=_refuse('label maps', 'bbox_head')
    ),
    'head_targets': Need(  # kd_dense.losses.HeadTargets
        _head_targets,
        loss_taps=('bbox_head.get_targets', 'bbox_head'),
        check=head_targets.check,
    ),
    'head_outputs': Need(  # all maps of the dense head, of the student and of the teacher
        lambda step: (step.student_taps['bbox_head'], step.teacher_taps['bbox_head']),
        taps=('bbox_head',),
    ),
    'rpn_outputs': Need(  # all maps of the head of region proposals, of both
        _rpn_outputs, taps=('rpn_head',), check=_check_rpn
    ),
    'anchors': Need(_anchors, check=_check_anchors),  # Anchors of the student's dense head
    'head_boxes': Need(  # kd_dense.losses.HeadBoxes
        lambda step: head_boxes.read(step.student, step.teacher),
        check=head_boxes.check,
        one_teacher=True,
    ),
    'taught_queries': Need(  # kd_dense.losses.TaughtQueries, the best of the teacher's
        _taught_queries,
        teacher_taps=('forward_decoder', 'bbox_head'),
        check=_check_decoder,
        one_teacher=True,
    ),
    'decoders': Need(  # kd_dense.losses.Decoders, to be run on other queries
        lambda s: decoders.read(s.student, s.teacher, s.student_taps, s.teacher_taps),
        taps=decoders.TAPS,
        check=decoders.check,
        one_teacher=True,
    ),
}


def gather(names: Iterable[str], step: Step) -> dict[str, Any]:
    """Read what the losses of a step need, each once."""
    return {name: NEEDS[name].read(step) for name in dict.fromkeys(names)}
