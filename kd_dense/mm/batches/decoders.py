"""Run the decoders of student and teacher on boxes that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32
from kd_dense.losses.queries.points import Decoders
from kd_dense.mm.batches.queries import as_queries
from kd_dense.taps import Taps

__all__ = ['TAPS', 'check', 'read']

# What a detector makes of its encoder's output for its decoder, in two steps.
TAPS = ('pre_transformer', 'pre_decoder')
# By the class of a detector: what its decoder calls the boxes that it begins with, and whether it
# takes them as logits.
BOXES = {'DABDETR': ('query_pos', True), 'DINO': ('reference_points', False)}
LEAST = 1e-5  # of the share whose logit is taken


def check(student: Any, teacher: Any) -> None:
    """Make sure that both detectors have a decoder that begins with boxes.

    Raises:
        ValueError: If one of them has none, or their classes differ.
    """
    for whose, model in (('student', student), ('teacher', teacher)):
        if _kind(model) is None:
            raise ValueError(
                'a loss runs both decoders on boxes that it gives, and the decoder of the '
                f'{whose} {type(model).__name__} cannot be given any: expected '
                f'{" or ".join(BOXES)}; QueryBoxLoss is for all DETRs'
            )
    ours, theirs = (model.bbox_head.cls_out_channels for model in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f'the head of the student has {ours} classes, that of the teacher {theirs}: take a '
            'teacher with the same classes'
        )


def _kind(model: Any) -> tuple[str, bool] | None:
    """Of a detector, or of one that derives from it; DDQ's decoder wants boxes of its own."""
    names = [cls.__name__ for cls in type(model).__mro__]
    found = next((name for name in names if name in BOXES), None)
    return None if found is None or 'DDQDETR' in names else BOXES[found]


def read(
    student: Any,
    teacher: Any,
    student_taps: Taps,
    teacher_taps: Taps | Mapping[str, Sequence[Tensor]],
) -> Decoders:
    """The decoders on the images of a step.

    Args:
        student: A detector of mmdet.
        teacher: Another one.
        student_taps: Has recorded the student.
        teacher_taps: Has recorded the teacher. Where it has not, in a rehearsal, the student
            stands for it.
    """
    ours = _inputs(student, student_taps)
    # A loss is computed without autocast, and layers are not.
    run = _with_autocast_of_now(_runner(student, ours), ours['memory'])
    if not isinstance(teacher_taps, Taps):
        return Decoders(run, lambda boxes: [x.detach() for x in run(boxes)], _boxes(student, ours))
    theirs = _inputs(teacher, teacher_taps)
    taught = torch.no_grad()(_runner(teacher, theirs))
    if next(teacher.parameters()).dtype == torch.float32:
        taught = _with_autocast_of_now(taught, theirs['memory'])
    return Decoders(run, taught, _boxes(teacher, theirs))


def _inputs(model: Any, taps: Taps) -> dict[str, Any]:
    """What the decoder was given."""
    (_, before), (last, _) = (taps.returned(name)[0] for name in TAPS)
    return {**before, **last}


def _boxes(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """The boxes that the decoder began with, as logits."""
    name, logits = _kind(model) or ('', True)
    boxes = at_least_float32(inputs[name].detach())
    return boxes if logits else boxes.logit(LEAST)


def _runner(model: Any, inputs: Mapping[str, Any]) -> Callable[[Tensor], list[Tensor]]:
    name, logits = _kind(model) or ('', True)
    memory = inputs['memory']
    # Queries for noise, which training adds, are masked; these are among themselves.
    rest = {k: x for k, x in inputs.items() if k not in ('query', name, 'dn_mask')}

    def run(boxes: Tensor) -> list[Tensor]:
        given = (boxes if logits else boxes.sigmoid()).to(memory)
        query = memory.new_zeros(*given.shape[:2], memory.shape[2])
        found = model.forward_decoder(query=query, **{name: given}, **rest)
        return [x.to(boxes.device) for x in as_queries(model.bbox_head.forward(**found))]

    return run


def _with_autocast_of_now(
    function: Callable[[Tensor], list[Tensor]], like: Tensor
) -> Callable[[Tensor], list[Tensor]]:
    device = like.device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def run(boxes: Tensor) -> list[Tensor]:
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return function(boxes)

    return run
