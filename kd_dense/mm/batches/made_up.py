"""Made-up batches, on which a model shows what its taps yield, that it trains, what that costs.

A batch is blank, and preprocessed already (`blank_batch`, `add_labels`), or random, and as a
data loader yields it (`random_batch`). Its layout is that of the model's batches: images, videos,
or the branches of semi-supervised training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from kd_dense.mm.batches.boxes import is_rotated, rotated
from kd_dense.mm.batches.channels import input_channels

__all__ = [
    'BRANCHES',
    'FRAMES',
    'IMAGES',
    'Labels',
    'add_labels',
    'any_tensor',
    'blank_batch',
    'every_sample',
    'labelled_samples',
    'layout',
    'metainfo',
    'random_batch',
]

IMAGES = 2
FRAMES = 2  # of a video: the first is the key frame
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')  # of semi-supervised training

BatchLayout = Literal['images', 'videos', 'branches']


class Labels(NamedTuple):
    """Which labels the sample of an image gets.

    Attributes:
        boxes: How many, of classes from the first to the last.
        smallest: The smallest side of a box, as a part of the image's; the largest is a half.
        classes: How many classes there are.
        masks: Whether boxes have masks, which fill them.
        label_maps: Whether there is a map of all classes, in blocks.
        edges: Whether there is a map of the blocks' edges.
        proposals: Whether there are proposals, each near a box.
        rotated: Whether boxes are of mmrotate's type, at an angle of 0.
    """

    boxes: int = 2
    smallest: float = 0.5
    classes: int = 1
    masks: bool = False
    label_maps: bool = False
    edges: bool = False
    proposals: bool = False
    rotated: bool = False


def layout(model: nn.Module, training: bool = True) -> BatchLayout:
    """How the batches of a model are laid out.

    Args:
        model: A model of mmdet or mmseg.
        training: Whether the batches are for training or for tests.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if hasattr(preprocessor, 'data_preprocessor'):
        return 'branches' if training else 'images'
    # Trackers alone have this: whether they are trained on images, as their detector is.
    on_images = getattr(preprocessor, 'use_det_processor', None)
    return 'images' if on_images is None or (on_images and training) else 'videos'


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
    channels = input_channels(model)
    inputs, samples = _arranged(
        layout(model), lambda: torch.zeros(channels, *shape, device=device), BaseDataElement
    )
    if isinstance(inputs, Mapping):
        return {branch: torch.stack(images) for branch, images in inputs.items()}, samples
    return torch.stack(inputs), samples


def random_batch(
    model: nn.Module,
    shape: tuple[int, int],
    labels: Labels,
    *,
    sample: type[BaseDataElement] = BaseDataElement,
    images: int = IMAGES,
    training: bool = True,
) -> dict[str, Any]:
    """Random images with labels as a data loader yields them, the same ones each time.

    Args:
        model: The model whose ``data_preprocessor`` takes them.
        shape: Height and width of the images, in pixels.
        labels: Which labels they have.
        sample: What holds the labels of an image.
        images: How many there are, or how many videos.
        training: Whether the batch is for training or for a test.

    Returns:
        The batch: ``inputs``, images of bytes ``(C, H, W)``, and ``data_samples``.
    """
    random = torch.Generator().manual_seed(0)
    size = (input_channels(model), *shape)
    inputs, samples = _arranged(
        layout(model, training),
        lambda: torch.randint(256, size, dtype=torch.uint8, generator=random),
        sample,
        images,
    )
    labels = labels._replace(rotated=is_rotated(model))
    for one in every_sample(samples):
        _label(one, shape, labels, random)
    return dict(inputs=inputs, data_samples=samples)


def _arranged(
    layout: BatchLayout,
    image: Callable[[], Tensor],
    sample: type[BaseDataElement],
    count: int = IMAGES,
) -> tuple[Any, Any]:
    """Inputs and samples of a batch, laid out as a data loader does."""
    if layout == 'branches':
        branches = {name: _arranged('images', image, sample, count) for name in BRANCHES}
        return (
            {name: inputs for name, (inputs, _) in branches.items()},
            {name: samples for name, (_, samples) in branches.items()},
        )
    if layout == 'videos':
        videos = [_video(image) for _ in range(count)]
        return [frames for frames, _ in videos], [sample for _, sample in videos]
    inputs = [image() for _ in range(count)]
    return inputs, [sample(metainfo=metainfo(one.shape[-2:], i)) for i, one in enumerate(inputs)]


def _video(image: Callable[[], Tensor]) -> tuple[Tensor, Any]:
    """Frames ``(T, C, H, W)`` and their sample."""
    from mmdet.structures import DetDataSample, TrackDataSample

    frames, samples = _arranged('images', image, DetDataSample, FRAMES)
    for index, frame in enumerate(samples):
        frame.set_metainfo(dict(frame_id=index))
    roles = dict(key_frames_inds=[0], ref_frames_inds=list(range(1, FRAMES)))
    sample = TrackDataSample(metainfo=roles)
    sample.video_data_samples = samples
    return torch.stack(frames), sample


def metainfo(shape: Sequence[int], index: int = 0) -> dict[str, Any]:
    """What a sample says about its image: it was neither scaled nor flipped.

    Args:
        shape: Height and width of the image, in pixels.
        index: Which image it is.
    """
    size = (shape[0], shape[1])
    return dict(
        img_id=index,
        img_path='',
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
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
    # Masks are mmdet's: where nobody has imported it, nobody needs them.
    masks = 'mmdet' in sys.modules and any('mask' in name for name, _ in model.named_modules())
    labels = Labels(
        masks=masks, label_maps=True, edges=True, proposals=True, rotated=is_rotated(model)
    )
    random = torch.Generator().manual_seed(0)
    for index, sample in enumerate(every_sample(samples)):
        _label(sample, size, labels._replace(boxes=index % IMAGES + 1), random)


def _label(sample: Any, size: tuple[int, int], labels: Labels, random: torch.Generator) -> None:
    """Add labels to the sample of an image."""
    with torch.device('cpu'):  # where the generator is, whatever is the default
        if labels.boxes:
            _add_boxes(sample, size, labels, random)
        blocks = _blocks(size, labels.classes, random)
    if labels.label_maps:
        sample.gt_sem_seg = PixelData(data=blocks, sem_seg=blocks)  # mmseg's name and mmdet's
    if labels.edges:
        sample.gt_edge_map = PixelData(data=(blocks != blocks.roll(1, -1)).long())


def _add_boxes(
    sample: Any, size: tuple[int, int], labels: Labels, random: torch.Generator
) -> None:
    height, width = size
    count = labels.boxes
    limits = torch.tensor([width, height])
    # Evenly on a logarithmic scale.
    sides = limits / 2 * (2 * labels.smallest) ** torch.rand(count, 2, generator=random)
    corners = (limits - sides) * torch.rand(count, 2, generator=random)
    boxes = torch.cat([corners, corners + sides], 1)
    things = InstanceData(
        bboxes=rotated(boxes) if labels.rotated else boxes,
        labels=torch.linspace(0, labels.classes - 1, count).long(),
        instances_ids=torch.arange(count),  # who is who in another frame
    )
    if labels.masks:
        things.masks = _filled(boxes, size)
    sample.gt_instances = things
    sample.ignored_instances = things[:0]
    if labels.proposals:
        sample.proposals = InstanceData(bboxes=0.95 * boxes, scores=torch.ones(count))


def _filled(boxes: Tensor, size: tuple[int, int]) -> Any:
    """The masks of boxes that fill them."""
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    x, y = torch.arange(width), torch.arange(height)[:, None]
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return BitmapMasks(inside.numpy().astype(np.uint8), height, width)


def _blocks(size: tuple[int, int], classes: int, random: torch.Generator) -> Tensor:
    """A label map ``(1, H, W)`` of square blocks: all classes, as evenly as can be."""
    height, width = size
    side = max(min(height, width) // 16, 1)
    rows, columns = -(-height // side), -(-width // side)
    labels = torch.randperm(rows * columns, generator=random) % classes
    grown = labels.view(rows, columns).repeat_interleave(side, 0).repeat_interleave(side, 1)
    return grown[None, :height, :width].contiguous()


def every_sample(samples: Any) -> Iterator[Any]:
    """The sample of every image, of every frame and in every branch."""
    if isinstance(samples, Mapping):
        for branch in samples.values():
            yield from every_sample(branch)
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
