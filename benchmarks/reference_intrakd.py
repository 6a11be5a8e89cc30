"""IntRA-KD as its definition reads, to be measured against.

It imitates the sketch that the author posted: label maps are made, dilated and resized class by
class with OpenCV, and mean, variance and skewness of a class come from maps of full size that
are masked, centred and raised to powers, all kept for autograd in the student. The pairs of
regions are compared by a product of matrices.
"""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Case, Pair, forward_backward
from kd_dense.losses import intra_loss

__all__ = ['cases', 'plain_intra']


def plain_masks(segmentation: Tensor, size: torch.Size, num_classes: int, kernel: int) -> Tensor:
    """What ``kd_dense.losses.intrakd.regions.region_masks`` gives, as ``(N, K, H, W)``."""
    square = np.ones((kernel, kernel), dtype=np.uint8)
    images = []
    for labels in segmentation.cpu().numpy():
        rows, columns = (
            np.arange(count) * length // count
            for length, count in zip(labels.shape, size, strict=True)
        )
        masks = []
        for c in range(num_classes):
            dilated = cv2.dilate((labels == c).astype(np.uint8), square)
            masks.append(dilated[rows][:, columns])
        images.append(np.stack(masks))
    return torch.from_numpy(np.stack(images)).to(segmentation.device)


def plain_moments(maps: Tensor, masks: Tensor, eps: float) -> list[Tensor]:
    """Mean, variance and skewness, ``(N, K, C)`` each."""
    moments = []
    for mask in masks.to(maps.dtype).unbind(1):
        mask = mask[:, None]
        area = mask.sum((2, 3)).clamp(min=1)
        mean = (maps * mask).sum((2, 3)) / area
        centred = (maps - mean[:, :, None, None]) * mask
        variance = (centred**2).sum((2, 3)) / area
        sigma = (variance + eps).sqrt()
        skew = ((centred / sigma[:, :, None, None]) ** 3).sum((2, 3)) / area
        moments.append(torch.stack([mean, variance, skew]))
    return list(torch.stack(moments, 2))


def plain_intra(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    num_classes: int,
    kernel: int = 11,
    eps: float = 1e-6,
    cos_eps: float = 1e-12,
) -> Tensor:
    """What ``kd_dense.losses.intra_loss`` gives with its default choices."""
    masks = plain_masks(segmentation, student.shape[2:], num_classes, kernel)

    def affinity(vectors: Tensor) -> Tensor:
        unit = vectors / (vectors.square().sum(2, keepdim=True) + cos_eps).sqrt()
        return unit @ unit.transpose(1, 2)

    ours = plain_moments(student, masks, eps)
    with torch.no_grad():
        theirs = plain_moments(teacher, masks, eps)
    total = torch.zeros(len(student), dtype=student.dtype, device=student.device)
    for s, t in zip(ours, theirs, strict=True):
        total = total + (affinity(s) - affinity(t)).square().sum((1, 2))
    present = masks.flatten(2).any(2).sum(1).clamp(min=1)
    return (total / (3 * present**2)).mean()


def make(channels: tuple[int, int], device: str, small: bool, images: int = 2) -> Pair:
    """Maps after a ReLU in which classes differ, and labels in blocks of 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    height, width, stride = (8, 12, 8) if small else (64, 128, 8)
    classes, channels = (4, (5, 6)) if small else (19, channels)
    dtype = torch.float64 if small else torch.float32
    blocks = torch.randint(
        classes, (images, height * stride // 32, width * stride // 32), generator=generator
    )
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    maps = []
    for count in channels:
        centre = torch.randn(classes, count, generator=generator, dtype=dtype)
        noise = torch.randn(images, count, height, width, generator=generator, dtype=dtype)
        means = centre[labels[:, ::stride, ::stride]].permute(0, 3, 1, 2)
        maps.append((means + noise).relu().to(device))
    student, teacher, labels = maps[0].requires_grad_(), maps[1], labels.to(device)
    return Pair(
        forward_backward(lambda: intra_loss(student, teacher, labels, classes), [student]),
        forward_backward(lambda: plain_intra(student, teacher, labels, classes), [student]),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case(
            f'intrakd-{narrow}',
            f'IntRA-KD, {narrow} and {wide} channels, 2x64x128, labels 512x1024 of 19 classes',
            partial(make, (narrow, wide)),
            goal_speed=20,
        )
        for narrow, wide in ((128, 512), (512, 512))
    ]
