"""Run a distilled student and its teacher on a picture, and keep what there is to see."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.losses import DistillLoss
from kd_dense.mm.batches.rois import RoIs
from kd_dense.mm.batches.targets import NEEDS, Step
from kd_dense.mm.distil.distilled import own_class
from kd_dense.mm.distil.rehearsal import alone
from kd_dense.mm.models.probe import FEATURES, forward
from kd_dense.mm.pictures.views import (
    UNLABELLED,
    Array,
    View,
    box_tensor,
    label_map,
    preprocessed,
    put_label_map,
    resized,
    scales,
)
from kd_dense.mm.randomness import kept_random_state
from kd_dense.taps import Taps

__all__ = ['Compared', 'Prediction', 'compare', 'predict']

# What is needed of the ground truth, and what a view has for it.
TRUTH = {
    'boxes': 'boxes',
    'labels': 'labels',
    'taught_queries': 'boxes',
    'head_targets': 'labels',
    'segmentation': 'segmentation',
}


class Prediction(NamedTuple):
    """What a model finds in a view: boxes, with or without masks, or a class for each pixel.

    Attributes:
        boxes: ``(n, 4)`` in pixels of the view.
        labels: ``(n,)``.
        scores: ``(n,)``, 0 to 1.
        masks: ``(n, H, W)``, bool.
        segmentation: ``(H, W)``.
    """

    boxes: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    masks: Array | None = None
    segmentation: Array | None = None


class Compared(NamedTuple):
    """What a term compares on one picture; all tensors on the CPU.

    Attributes:
        tap: The tap, as in the log.
        losses: One for each map, or one for all maps.
        student: Maps ``(1, C, H, W)`` as the loss is given them, behind the adapters.
        teacher: Its maps.
        needs: What the loss needs beside them.
        value: The weighted loss, without schedule.
        channels: Names of the channels where they are classes.
        rois: Of a term on shared RoIs: their classes, and x1, y1, x2, y2 as shares of the width
            and the height of the batch, ``(R, 4)``. Maps are rows ``(R, ...)`` then.
    """

    tap: str
    losses: Sequence[DistillLoss]
    student: list[Tensor]
    teacher: list[Tensor]
    needs: Mapping[str, Any]
    value: float
    channels: tuple[str, ...] | None
    rois: RoIs | None = None

    def loss(self, index: int) -> Any:
        """The loss of a map."""
        return self.losses[index % len(self.losses)]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate by oneself, and leave a training as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), kept_random_state(), alone():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _live(teachers: Sequence[Any]) -> Iterator[None]:
    """Let teachers run whose maps are kept: what is looked at is no view of a training picture."""
    caches = [teacher.cache for teacher in teachers]
    for teacher in teachers:
        teacher.cache = None
    try:
        yield
    finally:
        for teacher, cache in zip(teachers, caches, strict=True):
            teacher.cache = cache


def predict(model: Any, data: Mapping[str, Any], view: View) -> Prediction:
    """Let a model, of mmdet or mmseg, say what it finds.

    Args:
        model: Student or teacher; it preprocesses the picture itself.
        data: What [`kd_dense.mm.pictures.views.load`][] has read.
        view: The same as a view.
    """
    with _undisturbed(model):
        (sample,) = model.test_step(copy.deepcopy(dict(data)))
    sample = sample.cpu()
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.get('data', sample.pred_sem_seg.get('sem_seg'))
        return Prediction(segmentation=resized(labels, view.size)[0].numpy())
    found: Any = sample.get('pred_instances') if 'pred_instances' in sample else ()
    if not all(name in found for name in ('bboxes', 'labels', 'scores')):
        return Prediction()  # keypoints or depth, as examples
    masks = found.get('masks')
    if masks is not None:
        masks = resized(torch.as_tensor(masks).byte(), view.size).bool().numpy()
    boxes = box_tensor(found).float() * scales(sample)
    return Prediction(boxes, found.labels, found.scores.float(), masks)


def compare(
    model: Any, data: Mapping[str, Any], view: View
) -> tuple[dict[str, Compared], dict[str, str]]:
    """Record what each term of a distilled student compares on a picture.

    Neither model, no random state and no gradient is changed.

    Args:
        model: A distilled student; its teacher is loaded if it is not yet.
        data: What [`kd_dense.mm.pictures.views.load`][] has read.
        view: The same as a view.

    Returns:
        What there is to see of each term; and the reason for each term without anything.
    """
    plan, left_out = model.kd_plan, {}
    terms = {}
    by_loss = plan.student_by_loss or any(g.teacher.by_loss for g in plan.running.values())
    known = dict(boxes=view.boxes, labels=view.labels, segmentation=view.segmentation)
    for name, term in model.kd.items():
        lacking = [n for n in term.needs if n in TRUTH and known[TRUTH[n]] is None]
        if (by_loss or term.rois) and view.labels is None and view.segmentation is None:
            lacking.append('the losses of the models')
        if lacking:
            left_out[name] = f'needs {" and ".join(lacking)}: the picture has no ground truth'
        else:
            terms[name] = term
    if not terms:
        return {}, left_out
    inputs, samples = preprocessed(model, data)
    _complete(samples, view, inputs)
    ours = Taps(chain(*(term.student_taps for term in terms.values())))
    in_loss = (
        plan.student_by_loss
        or any(term.rois is not None for term in terms.values())
        or any(NEEDS[need].loss_taps for term in terms.values() for need in term.needs)
    )
    with _undisturbed(model), _live([guest.teacher for guest in plan.running.values()]):
        try:
            plan.run(model, [*terms.values()], inputs, samples)
            with ours.on(model):
                if in_loss:  # the student's own, as without us
                    own_class(type(model)).loss(model, inputs, samples)
                else:
                    forward(model, inputs, samples, ours.names)
            steps = plan.taught(Step(model, inputs, samples, ours), terms)
            found = {
                name: _compared(terms[name], step, gathered, view)
                for name, (step, gathered) in steps.items()
            }
        finally:
            plan.clear()
    return found, left_out


def _in_shares(rois: RoIs, view: View) -> RoIs:
    height, width = view.batch_shape
    return rois._replace(boxes=rois.boxes[:, 1:] / rois.boxes.new_tensor([width, height] * 2))


def _complete(samples: Any, view: View, inputs: Tensor) -> None:
    """Pad the label map as the picture has been, and put the ground truth where the batch is."""
    if view.segmentation is None:
        return
    (sample,), (height, width) = samples, view.batch_shape
    labels = label_map(sample)
    assert labels is not None
    rows, columns = labels.shape[-2:]
    padding = (0, width - columns, 0, height - rows)
    put_label_map(sample, F.pad(labels.to(inputs.device), padding, value=UNLABELLED))


def _compared(term: Any, step: Step, gathered: Mapping[str, Any], view: View) -> Compared:
    maps, needs = term.maps(step), term.needed(step, gathered)
    rois = None if term.rois is None else _in_shares(term.rois.read(step), view)
    classes = view.classes
    # A copy, because a critic changes with every call.
    term = copy.deepcopy(term).cpu().eval()
    ours, theirs, needs = _on_cpu((*maps, dict(needs)))
    student, teacher = term.compared(ours, theirs)
    value = sum(float(x) for x in term(ours, theirs, 1.0, needs).values())
    feature = term.student_tap.partition('.')[0].partition('[')[0] in FEATURES
    named = not feature and all(x.dim() == 4 and x.shape[1] == len(classes) for x in student)
    return Compared(
        tap=term.student_tap,
        losses=list(term.losses),
        student=student,
        teacher=teacher,
        needs=needs,
        value=value,
        channels=classes if named else None,
        rois=_on_cpu(rois),
    )


def _on_cpu(value: Any) -> Any:
    """Copy all tensors of a nested value to the CPU, in at least float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*map(_on_cpu, value))
    return type(value)(map(_on_cpu, value)) if isinstance(value, (list, tuple)) else value
