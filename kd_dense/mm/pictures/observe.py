"""Run a distilled student and its teacher on a picture, and keep what there is to see."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.losses import DistillLoss
from kd_dense.mm.batches.targets import NEEDS, Step, gather
from kd_dense.mm.distil.distilled import own_class
from kd_dense.mm.distil.rehearsal import alone
from kd_dense.mm.models.probe import FEATURES, forward, needs_features_only
from kd_dense.mm.randomness import kept_random_state
from kd_dense.taps import Taps

__all__ = ['Compared', 'Prediction', 'View', 'class_names', 'compare', 'load', 'look', 'predict']

Array = NDArray[Any]

UNLABELLED = 255
# What is needed of the ground truth, and where a sample has it.
TRUTH = {'boxes': 'boxes', 'head_targets': 'boxes', 'segmentation': 'segmentation'}


class View(NamedTuple):
    """A picture as the student is given it, before normalisation and padding.

    Attributes:
        image: ``(H, W, 3)``, RGB, uint8.
        batch_shape: Height and width with padding: what the maps show.
        classes: Names of the classes.
        boxes: Ground truth, ``(n, 4)``: x1, y1, x2, y2 in pixels; None if it is not known.
        labels: Classes of the boxes, ``(n,)``.
        segmentation: Class of each pixel, ``(H, W)``; None if it is not known.
    """

    image: Array
    batch_shape: tuple[int, int]
    classes: tuple[str, ...]
    boxes: Tensor | None = None
    labels: Tensor | None = None
    segmentation: Array | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]


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
    """

    tap: str
    losses: Sequence[DistillLoss]
    student: list[Tensor]
    teacher: list[Tensor]
    needs: Mapping[str, Any]
    value: float
    channels: tuple[str, ...] | None

    def loss(self, index: int) -> Any:
        """The loss of a map."""
        return self.losses[index % len(self.losses)]


def load(dataset: Any, index: int) -> dict[str, Any]:
    """Read an entry of a data set as a batch of one; its annotations in pixels of the picture.

    mmdet and mmseg read the annotations of a validation set after the pictures are resized, in
    pixels of the file.

    Args:
        dataset: A data set of mmdet or mmseg.
        index: Which entry.

    Raises:
        IndexError: If there is no such entry.
    """
    if not 0 <= index < len(dataset):
        raise IndexError(
            f'there is no entry {index} in the data set, which has {len(dataset)}: expected '
            f'0 to {len(dataset) - 1}'
        )
    data: dict[str, Any] = pseudo_collate([dataset[index]])
    (image,), (sample,) = data['inputs'], data['data_samples']
    size = tuple(image.shape[-2:])
    if 'gt_instances' in sample and not _resized_with_picture(dataset):
        sample.gt_instances.bboxes = _box_tensor(sample.gt_instances) * _scales(sample)
    if 'gt_sem_seg' in sample and sample.gt_sem_seg.data.shape[-2:] != size:
        labels = _resized(sample.gt_sem_seg.data, size)
        sample.gt_sem_seg = type(sample.gt_sem_seg)(data=labels)
    return data


def _resized_with_picture(dataset: Any) -> bool:
    """Whether annotations are read before the picture is resized, and so with it."""
    while hasattr(dataset, 'datasets') or hasattr(dataset, 'dataset'):
        dataset = dataset.datasets[0] if hasattr(dataset, 'datasets') else dataset.dataset
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    names = [type(step).__name__ for step in steps]
    annotated = [i for i, name in enumerate(names) if 'Annotations' in name]
    resized = [i for i, name in enumerate(names) if 'Resize' in name]
    return bool(annotated and resized and annotated[0] < resized[0])


def _scales(sample: Any) -> Tensor:
    """From pixels of the file to pixels of the picture, for x1, y1, x2, y2."""
    return torch.tensor(sample.metainfo.get('scale_factor', (1.0, 1.0))).float().repeat(2)


def _box_tensor(instances: Any) -> Tensor:
    boxes: Tensor = getattr(instances.bboxes, 'tensor', instances.bboxes)
    return boxes


def _resized(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Label maps or masks ``(n, h, w)`` at another size, without new values."""
    if tuple(labels.shape[-2:]) == size:
        return labels
    found = F.interpolate(labels[None].float(), size, mode='nearest')[0]
    return found.to(labels.dtype)


def class_names(dataset: Any) -> tuple[str, ...]:
    """Names of the classes, from the data set's own description."""
    return tuple(map(str, dataset.metainfo.get('classes') or ()))


def look(model: Any, data: Mapping[str, Any], classes: tuple[str, ...]) -> View:
    """Make what [`load`][] has read into a view.

    Args:
        model: The student.
        data: A batch of one.
        classes: Names of the classes.
    """
    (image,), (sample,) = data['inputs'], data['data_samples']
    pixels = image.expand(3, -1, -1) if image.shape[0] == 1 else image.flip(0)  # files are BGR
    pixels = pixels.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    height, width = _batch(model, data)[0].shape[-2:]
    view = View(np.ascontiguousarray(pixels), (height, width), classes)
    if 'gt_instances' in sample:
        found = sample.gt_instances
        view = view._replace(boxes=_box_tensor(found).cpu().float(), labels=found.labels.cpu())
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data
        view = view._replace(segmentation=labels.reshape(labels.shape[-2:]).cpu().numpy())
    return view


def _batch(model: Any, data: Mapping[str, Any]) -> tuple[Tensor, list[Any]]:
    """Preprocess as for validation; the data stay as they are."""
    batch = model.data_preprocessor(copy.deepcopy(dict(data)), False)
    return batch['inputs'], batch['data_samples']


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


def predict(model: Any, data: Mapping[str, Any], view: View) -> Prediction:
    """Let a model, of mmdet or mmseg, say what it finds.

    Args:
        model: Student or teacher; it preprocesses the picture itself.
        data: What [`load`][] has read.
        view: The same as a view.
    """
    with _undisturbed(model):
        (sample,) = model.test_step(copy.deepcopy(dict(data)))
    sample = sample.cpu()
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.get('data', sample.pred_sem_seg.get('sem_seg'))
        return Prediction(segmentation=_resized(labels, view.size)[0].numpy())
    if 'pred_instances' not in sample:
        return Prediction()
    found = sample.pred_instances
    masks = found.get('masks')
    if masks is not None:
        masks = _resized(torch.as_tensor(masks).byte(), view.size).bool().numpy()
    boxes = _box_tensor(found).float() * _scales(sample)
    return Prediction(boxes, found.labels, found.scores.float(), masks)


def compare(
    model: Any, data: Mapping[str, Any], view: View
) -> tuple[dict[str, Compared], dict[str, str]]:
    """Record what each term of a distilled student compares on a picture.

    Neither model, no random state and no gradient is changed.

    Args:
        model: A distilled student; its teacher is loaded if it is not yet.
        data: What [`load`][] has read.
        view: The same as a view.

    Returns:
        What there is to see of each term; and the reason for each term without anything.
    """
    plan, left_out = model.kd_plan, {}
    terms = {}
    by_loss = plan.student_by_loss or plan.teacher.by_loss
    known = dict(boxes=view.boxes, segmentation=view.segmentation)
    for name, term in model.kd.items():
        lacking = [n for n in term.loss.needs if n in TRUTH and known[TRUTH[n]] is None]
        if by_loss and view.boxes is None and view.segmentation is None:
            lacking.append('the losses of the models')
        if lacking:
            left_out[name] = f'needs {" and ".join(lacking)}: the picture has no ground truth'
        else:
            terms[name] = term
    if not terms:
        return {}, left_out
    inputs, samples = _batch(model, data)
    _complete(samples, view, inputs)
    ours = Taps(chain(*(term.student_taps for term in terms.values())))
    theirs = Taps(plan.teacher_calls)
    in_loss = plan.student_by_loss or any(
        NEEDS[need].loss_taps for term in terms.values() for need in term.loss.needs
    )
    with _undisturbed(model):
        plan.teacher.run(theirs, plan.teacher_calls, plan.preprocess, inputs, samples)
        plan.teacher.wait(theirs)
        with ours.on(model):
            if in_loss:  # the student's own, as without us
                own_class(type(model)).loss(model, inputs, samples)
            else:
                forward(model, inputs, samples, needs_features_only(ours.names))
        needs = gather(
            chain(*(term.loss.needs for term in terms.values())),
            Step(model, inputs, samples, ours, theirs),
        )
        found = {
            name: _compared(
                term,
                ours[term.student_tap],
                theirs[term.teacher_tap],
                {need: needs[need] for need in term.loss.needs},
                view.classes,
            )
            for name, term in terms.items()
        }
    return found, left_out


def _complete(samples: Sequence[Any], view: View, inputs: Tensor) -> None:
    """Pad the label map as the picture has been, and put the ground truth where the batch is."""
    (sample,) = samples
    if view.segmentation is not None:
        (height, width), (rows, columns) = view.batch_shape, view.size
        labels = sample.gt_sem_seg.data.to(inputs.device)
        labels = F.pad(labels, (0, width - columns, 0, height - rows), value=UNLABELLED)
        sample.gt_sem_seg = type(sample.gt_sem_seg)(data=labels)


def _compared(
    term: Any,
    student: list[Tensor],
    teacher: list[Tensor],
    needs: Mapping[str, Any],
    classes: tuple[str, ...],
) -> Compared:
    # A copy, because a critic changes with every call.
    term = copy.deepcopy(term).cpu().eval()
    ours, theirs, needs = _on_cpu((student, teacher, dict(needs)))
    adapted = term.adapted(ours, theirs)
    value = sum(float(x) for x in term(ours, theirs, 1.0, needs).values())
    feature = term.student_tap.partition('.')[0].partition('[')[0] in FEATURES
    named = not feature and all(x.dim() == 4 and x.shape[1] == len(classes) for x in adapted)
    return Compared(
        tap=term.student_tap,
        losses=list(term.losses),
        student=adapted,
        teacher=theirs,
        needs=needs,
        value=value,
        channels=classes if named else None,
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
