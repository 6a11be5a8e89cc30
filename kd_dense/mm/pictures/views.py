"""A picture as it was read, with what is known to be in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kd_dense.mm.batches.boxes import plain, upright

__all__ = ['View', 'check_entry', 'class_names', 'load', 'look']

Array = NDArray[Any]

UNLABELLED = 255


class View(NamedTuple):
    """A picture as the student is given it, before normalisation and padding.

    Attributes:
        image: ``(H, W, 3)``, RGB, uint8.
        batch_shape: Height and width with padding: what the maps show.
        classes: Names of the classes.
        boxes: Ground truth, ``(n, 4)``: x1, y1, x2, y2 in pixels, around boxes that are rotated;
            None if it is not known.
        labels: Classes of the boxes, ``(n,)``; None if they are not known.
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


def check_entry(dataset: Any, index: int) -> None:
    """Make sure that a data set has an entry.

    Raises:
        IndexError: If there is no such entry.
    """
    if not 0 <= index < len(dataset):
        raise IndexError(
            f'there is no entry {index} in the data set, which has {len(dataset)}: expected '
            f'0 to {len(dataset) - 1}'
        )


def load(dataset: Any, index: int) -> dict[str, Any]:
    """Read an entry of a data set as a batch of one; its annotations in pixels of the picture.

    mmdet and mmseg read the annotations of a validation set after the pictures are resized, in
    pixels of the file.

    Args:
        dataset: A data set of mmdet or mmseg, with or without annotations.
        index: Which entry.

    Raises:
        IndexError: If there is no such entry.
    """
    check_entry(dataset, index)
    data: dict[str, Any] = pseudo_collate([dataset[index]])
    size = tuple(data['inputs'][0].shape[-2:])
    for sample in _samples(data):
        boxes, labels = _boxes(sample), label_map(sample)
        if boxes is not None and not _resized_with_picture(dataset):
            _rescale(sample)
        if labels is not None and tuple(labels.shape[-2:]) != size:
            put_label_map(sample, resized(labels, size))
    return data


def _rescale(sample: Any) -> None:
    """Take boxes from pixels of the file to those of the picture."""
    found = sample.gt_instances.bboxes
    if plain(found).shape[1] == 4:
        sample.gt_instances.bboxes = plain(found) * scales(sample)
    else:  # of a type that models of rotated boxes are given
        found.rescale_(sample.metainfo.get('scale_factor', (1.0, 1.0)))


def _resized_with_picture(dataset: Any) -> bool:
    """Whether annotations are read before the picture is resized, and so with it."""
    while hasattr(dataset, 'datasets') or hasattr(dataset, 'dataset'):
        dataset = dataset.datasets[0] if hasattr(dataset, 'datasets') else dataset.dataset
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    names = [type(step).__name__ for step in steps]
    annotated = [i for i, name in enumerate(names) if 'Annotations' in name]
    resized = [i for i, name in enumerate(names) if 'Resize' in name]
    return bool(annotated and resized and annotated[0] < resized[0])


def _samples(data: Mapping[str, Any]) -> Sequence[Any]:
    """The samples of a batch; a data set need not have any."""
    return data.get('data_samples') or ()


def _boxes(sample: Any) -> Tensor | None:
    """The boxes of the ground truth, ``(n, 4)``; mmdet packs a sample without them as well."""
    found = sample.get('gt_instances') if 'gt_instances' in sample else ()
    return box_tensor(found) if 'bboxes' in found else None


def box_tensor(instances: Any) -> Tensor:
    """Upright boxes, ``(n, 4)``: rotated ones are drawn as what is around them."""
    return upright(instances.bboxes)


def label_map(sample: Any) -> Tensor | None:
    """The label map of the ground truth, ``(1, H, W)``."""
    if 'gt_sem_seg' not in sample:
        return None
    labels = sample.gt_sem_seg.get(_label_field(sample))
    return None if labels is None else torch.as_tensor(labels).reshape(1, *labels.shape[-2:])


def _label_field(sample: Any) -> str:
    """What mmseg and mmdet call it."""
    return 'data' if 'data' in sample.gt_sem_seg else 'sem_seg'


def put_label_map(sample: Any, labels: Tensor) -> None:
    """Put another one in its place, of another size."""
    old = sample.gt_sem_seg
    sample.gt_sem_seg = type(old)(metainfo=old.metainfo, **{_label_field(sample): labels})


def scales(sample: Any) -> Tensor:
    """From pixels of the file to pixels of the picture, for x1, y1, x2, y2."""
    return torch.tensor(sample.metainfo.get('scale_factor', (1.0, 1.0))).float().repeat(2)


def resized(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Label maps or masks ``(n, h, w)`` at another size, without new values."""
    if tuple(labels.shape[-2:]) == size:
        return labels
    found = F.interpolate(labels[None].float(), size, mode='nearest')[0]
    return found.to(labels.dtype)


def class_names(dataset: Any) -> tuple[str, ...]:
    """Names of the classes, from the data set's own description.

    None, if it has no description, or is concatenated from data sets with several.
    """
    found = getattr(dataset, 'metainfo', None) or {}
    all_names = [
        one.get('classes') or () for one in (found if isinstance(found, list) else [found])
    ]
    names = {tuple(map(str, one)) for one in all_names}
    return names.pop() if len(names) == 1 else ()


def look(model: Any, data: Mapping[str, Any], classes: tuple[str, ...]) -> View:
    """Make what [`load`][] has read into a view.

    Args:
        model: The student.
        data: A batch of one.
        classes: Names of the classes.
    """
    (image,) = data['inputs']
    height, width = preprocessed(model, data)[0].shape[-2:]
    view = View(_colours(image), (height, width), classes)
    for sample in _samples(data):
        boxes, labels = _boxes(sample), label_map(sample)
        if boxes is not None:
            kinds = sample.gt_instances.get('labels')
            view = view._replace(
                boxes=boxes.cpu().float(), labels=None if kinds is None else kinds.cpu()
            )
        if labels is not None:
            view = view._replace(segmentation=labels[0].cpu().numpy())
    return view


def _colours(image: Tensor) -> Array:
    """Red, green, blue of a picture; files are BGR, and channels beyond them are not shown."""
    pixels = image[:3].flip(0) if len(image) >= 3 else image[:1].expand(3, -1, -1)
    pixels = pixels.clamp(0, 255).byte().permute(1, 2, 0)
    return np.ascontiguousarray(pixels.cpu().numpy())


def preprocessed(model: Any, data: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """Preprocess as for validation: images and samples; the data stay as they are."""
    batch = model.data_preprocessor(copy.deepcopy(dict(data)), False)
    return batch['inputs'], batch.get('data_samples')
