"""Labels that a teacher predicts for pictures that have none."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from kd_dense.functional import without_autocast
from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.datasets.unlabelled import IGNORED
from kd_dense.mm.teachers.guest import Teacher
from kd_dense.taps import near_names

__all__ = ['NEEDS', 'Pseudo', 'pseudo_of']

# What a loss may need that the teacher's predictions are taken for.
NEEDS = frozenset({'boxes', 'labels', 'segmentation'})
FIELDS = ('score_thr', 'teacher')
HEADS = ('decode_head', 'bbox_head', 'roi_head.bbox_head')


class Pseudo:
    """The teacher's predictions as boxes or label maps of pictures that have none.

    They come from the path that the teacher predicts by, with its own preprocessing and its own
    NMS, on the picture as the student sees it.

    Args:
        student: The student.
        teacher: The teacher.
        preprocess: From the student's preprocessing to the teacher's.
        score_thr: The smallest score of a box, and the smallest probability of the class of a
            pixel, that is taken; other pixels are ignored.

    Raises:
        ValueError: If the teacher predicts nothing of that kind, or other classes than the
            student.

    Examples:
        >>> model = dict(type='kd_dense.Distilled', pseudo=dict(score_thr=0.5), unlabelled=True)
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher,
        preprocess: Repreprocess,
        score_thr: float = 0.5,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise ValueError(f'pseudo: unknown field {name!r}, {near_names(name, FIELDS)}')
        real = isinstance(score_thr, Real) and not isinstance(score_thr, bool)
        if not (real and 0 <= score_thr < 1):
            raise ValueError(f'pseudo expects 0 <= score_thr < 1, got score_thr={score_thr!r}')
        model = teacher.model
        self.teacher, self.preprocess, self.score_thr = teacher, preprocess, score_thr
        self.segments = hasattr(student, 'decode_head')
        what = 'label maps' if self.segments else 'boxes'
        predict = getattr(model, 'inference' if self.segments else 'predict', None)
        if not callable(predict) or self.segments != hasattr(model, 'decode_head'):
            raise ValueError(
                f'pseudo: the teacher {type(model).__name__} predicts no {what}: take a '
                f'{"segmenter" if self.segments else "detector"}, or leave pseudo out'
            )
        if teacher.cache is not None:
            raise ValueError(
                'pseudo wants a teacher that runs: leave out its cache, or name another one, as '
                "pseudo=dict(teacher='NAME')"
            )
        ours, theirs = _classes(student), _classes(model)
        if ours != theirs:
            raise ValueError(
                f'pseudo: the teacher predicts {theirs} classes and the student {ours}: its '
                'predictions are no labels for it; take a teacher of the same classes'
            )
        self.ignored = getattr(getattr(student, 'decode_head', None), 'ignore_index', IGNORED)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pseudo:
        other = object.__new__(type(self))
        other.__dict__ = {**vars(self)}
        return other

    @torch.no_grad()
    def __call__(self, inputs: Tensor, samples: Sequence[Any]) -> list[Any]:
        """Copies of samples, with what the teacher predicts.

        Args:
            inputs: Pictures as the student has them, ``(N, C, H, W)``.
            samples: Their samples.
        """
        labelled = [copy.copy(sample) for sample in samples]
        asked = [copy.deepcopy(sample) for sample in samples]
        self.teacher.follow(inputs)
        model = self.teacher.model
        parameter = next(model.parameters())
        batch = self.preprocess(inputs, samples).to(parameter.dtype)
        with without_autocast(batch):
            if self.segments:
                logits = model.inference(batch, [sample.metainfo for sample in asked])
                for sample, labels in zip(labelled, self._label_maps(logits.float()), strict=True):
                    height, width = sample.metainfo['img_shape'][:2]
                    labels[height:] = self.ignored
                    labels[:, width:] = self.ignored
                    # mmseg's name and mmdet's
                    sample.gt_sem_seg = PixelData(data=labels[None], sem_seg=labels[None])
                return labelled
            found = model.predict(batch, asked, rescale=False)
        for sample, one in zip(labelled, found, strict=True):
            things = one.pred_instances
            things = things[things.scores >= self.score_thr]
            sample.gt_instances = InstanceData(bboxes=things.bboxes, labels=things.labels)
        return labelled

    def _label_maps(self, logits: Tensor) -> Tensor:
        """The class of each pixel that is sure enough, ``(N, H, W)``."""
        if logits.shape[1] == 1:
            foreground = logits[:, 0].sigmoid()
            labels = (foreground > self.teacher.model.decode_head.threshold).long()
            sure = torch.maximum(foreground, 1 - foreground)
        else:
            sure, labels = logits.softmax(1).max(1)
        taken: Tensor = labels.where(sure >= self.score_thr, self.ignored)
        return taken


def _classes(model: Any) -> int | None:
    """How many classes a model predicts."""
    for path in HEADS:
        head = model
        for name in path.split('.'):
            head = getattr(head, name, None)
        if isinstance(head, (Sequence, torch.nn.ModuleList)) and len(head):
            head = head[-1]
        classes = getattr(head, 'num_classes', None)
        if isinstance(classes, int):
            return classes
    return None


def pseudo_of(fields: Any, student: Any, guests: Mapping[str, Any]) -> Pseudo | None:
    """What predicts labels, as ``pseudo=...`` says: the teacher that it names, or the first.

    Args:
        fields: Of [`Pseudo`][], and the name of the ``teacher``; None for nothing.
        student: The student.
        guests: The teachers by name, each with its way to preprocess.

    Raises:
        ValueError: If they are no dict, or there is no such teacher.
    """
    if fields is None:
        return None
    if not isinstance(fields, Mapping):
        raise ValueError(f'expected pseudo as dict(score_thr=0.5), got {fields!r}')
    running = {name: one for name, one in guests.items() if one is not None}
    if not running:
        raise ValueError('pseudo wants a teacher beside the student itself')
    given = {name: value for name, value in fields.items() if name != '_scope_'}
    name = given.pop('teacher', next(iter(running)))
    if name not in running:
        raise ValueError(f'pseudo: there is no teacher {name!r}, {near_names(str(name), running)}')
    guest = running[name]
    return Pseudo(student, guest.teacher, guest.preprocess, **given)
