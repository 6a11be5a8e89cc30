"""Made-up batches, on which a model shows what its taps yield and whether its loss runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

__all__ = [
    'BRANCHES',
    'FRAMES',
    'IMAGES',
    'add_labels',
    'any_tensor',
    'blank_batch',
    'labelled_samples',
    'metainfo',
]

IMAGES = 2
FRAMES = 2  # of a video: the first is the key frame
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')  # of semi-supervised training


def blank_batch(model: nn.Module, shape: tuple[int, int], device: str) -> tuple[Any, Any]:
    """Two blank images, and samples that say their size, in the layout of the model's batches.

    Args:
        model: A model of mmdet or mmseg.
        shape: Height and width of the images, in pixels.
        device: Where the images lie.

    Returns:
        Images ``(N, C, H, W)`` and a list of samples; videos ``(N, T, C, H, W)`` and a list of
        samples with frames; or, for semi-supervised training, a dict of images and one of lists.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if (inner := getattr(preprocessor, 'data_preprocessor', None)) is not None:
        branches = {name: _images(inner, shape, device) for name in BRANCHES}
        return (
            {name: images for name, (images, _) in branches.items()},
            {name: samples for name, (_, samples) in branches.items()},
        )
    if getattr(preprocessor, 'use_det_processor', True):
        return _images(preprocessor, shape, device)
    from mmdet.structures import DetDataSample, TrackDataSample

    videos = [_images(preprocessor, shape, device) for _ in range(FRAMES)]
    samples = []
    for frames in zip(*(samples for _, samples in videos), strict=True):
        roles = dict(key_frames_inds=[0], ref_frames_inds=list(range(1, FRAMES)))
        sample = TrackDataSample(metainfo=roles)
        sample.video_data_samples = [
            DetDataSample(metainfo={**frame.metainfo, 'frame_id': index})
            for index, frame in enumerate(frames)
        ]
        samples.append(sample)
    return torch.stack([images for images, _ in videos], 1), samples


def _images(
    preprocessor: Any, shape: tuple[int, int], device: str
) -> tuple[Tensor, list[BaseDataElement]]:
    mean = getattr(preprocessor, 'mean', None)
    channels = 3 if mean is None else mean.numel()
    images = torch.zeros(IMAGES, channels, *shape, device=device)
    return images, [BaseDataElement(metainfo=metainfo(shape)) for _ in range(IMAGES)]


def metainfo(shape: tuple[int, int]) -> dict[str, Any]:
    """What a sample says about its image: it was neither scaled nor flipped.

    Args:
        shape: Height and width of the image, in pixels.
    """
    return dict(
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        batch_input_shape=shape,
        scale_factor=(1.0, 1.0),
        flip=False,
        homography_matrix=np.eye(3, dtype=np.float32),  # of what augmentation did
    )


def add_labels(model: nn.Module, samples: Any, size: tuple[int, int]) -> None:
    """Add what the model is trained with to the samples of a blank batch.

    Boxes of class 0, with masks where the model has a part for them; a label map of class 0.

    Args:
        model: The model.
        samples: What [`blank_batch`][] returned beside the images.
        size: Height and width of the images.
    """
    with_masks = any('mask' in name for name, _ in model.named_modules())
    for index, sample in enumerate(_every(samples)):
        _add_labels(sample, index % IMAGES + 1, size, with_masks)


def _add_labels(sample: Any, count: int, size: tuple[int, int], with_masks: bool) -> None:
    height, width = size
    corners = torch.tensor([0.1, 0.2, 0.6, 0.8]) * torch.tensor([width, height] * 2)
    boxes = corners + torch.arange(count)[:, None]
    things = InstanceData(bboxes=boxes, labels=torch.zeros(count, dtype=torch.long))
    things.instances_ids = torch.arange(count)  # who is who in another frame
    if with_masks and 'mmdet' in sys.modules:
        from mmdet.structures.mask import BitmapMasks

        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        masks[:, height // 4 : height // 2, width // 4 : width // 2] = 1
        things.masks = BitmapMasks(masks.numpy(), height, width)
    sample.gt_instances = things
    sample.proposals = InstanceData(bboxes=boxes + 1, scores=torch.ones(count))
    labels = torch.zeros(1, height, width, dtype=torch.long)
    sample.gt_sem_seg = PixelData(data=labels, sem_seg=labels)  # mmseg's name and mmdet's
    sample.gt_edge_map = PixelData(data=labels)


def _every(samples: Any) -> Iterator[Any]:
    """The sample of every image."""
    if isinstance(samples, Mapping):
        for branch in samples.values():
            yield from _every(branch)
        return
    for sample in samples:
        yield from sample.video_data_samples if 'video_data_samples' in sample else [sample]


def labelled_samples(samples: Any) -> Sequence[Any]:
    """The samples of the images that a model sees first, and that have labels.

    These are all; of videos the key frames, and in semi-supervised training those with labels.
    """
    if isinstance(samples, Mapping):
        return labelled_samples(samples[BRANCHES[0]])
    return [s.get_key_frames()[0] if 'video_data_samples' in s else s for s in samples or ()]


def any_tensor(inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The images of a batch; those with labels where they come in several branches."""
    return inputs[BRANCHES[0]] if isinstance(inputs, Mapping) else inputs
