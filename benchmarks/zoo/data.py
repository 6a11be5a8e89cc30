"""Batches as a model's pipeline would make them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from kd_dense.mm.batches.made_up import IMAGES, Labels, every_sample, layout, random_batch
from kd_dense.mm.configs import dicts_in

LANE = 72  # heights at which a lane is given


class Data(NamedTuple):
    """Which labels a model is trained with."""

    segments: bool  # a segmenter of mmseg
    labels: Labels
    lanes: bool
    images: int = IMAGES  # of a batch for training


def data_of(config: Config, segments: bool) -> Data:
    """Read off a config which labels its pipeline loads."""
    pipelines = [config.get('train_dataloader'), config.get('train_pipeline')]
    steps = {str(one['type']): one for one in dicts_in(pipelines) if 'type' in one}
    loads = [step for name, step in steps.items() if 'Annotations' in name]
    panoptic, lanes = 'LoadPanopticAnnotations' in steps, 'PackLineDetectionInputs' in steps
    classes = [one['num_classes'] for one in dicts_in(config.model) if 'num_classes' in one]
    labels = Labels(
        boxes=0 if segments else 2,
        classes=min((x for x in classes if isinstance(x, int)), default=1),
        masks=panoptic or any(step.get('with_mask') for step in loads),
        label_maps=segments or panoptic or lanes or any(step.get('with_seg') for step in loads),
        edges='GenerateEdge' in steps,
        proposals='LoadProposals' in steps,
    )
    return Data(segments, labels, lanes)


def make_batch(model: nn.Module, data: Data, size: tuple[int, int], training: bool) -> Any:
    """Random images with labels, as a data loader gives them."""
    if data.segments:
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    # Trackers are tested on one video at a time.
    images = data.images if training else 1 if layout(model, False) == 'videos' else IMAGES
    batch = random_batch(model, size, data.labels, sample=Sample, images=images, training=training)
    if data.lanes:
        for sample in every_sample(batch['data_samples']):
            _add_lane(sample, size)
    return batch


def _add_lane(sample: Any, size: tuple[int, int]) -> None:
    height, width = size
    # One row a lane: no or yes, start (y, x), angle, length, x at each height.
    rows = torch.full((4, 6 + LANE), -1e5)
    rows[:, :6] = torch.tensor([1, 0, 0, 0, 0, 0])
    rows[0, :6] = torch.tensor([0, 1, 0, 0.3, 0.4, LANE])
    rows[0, 6:] = torch.linspace(0.3 * width, 0.6 * width, LANE)
    sample.lines_array = rows.numpy()
    sample.org_width, sample.org_height = width, height
