"""The centre of the features of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32, labels_at
from kd_dense.losses.base import check_same_size

__all__ = ['at_features', 'class_sums', 'region_centres']


def at_features(
    owner: str,
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    num_classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Labels for two maps, and whether they are some.

    Args:
        owner: Who asks, for messages.
        student: ``(N, C, H, W)``.
        teacher: ``(N, C', H, W)``.
        segmentation: ``(N, H', W')``, integers.
        num_classes: K.
        ignore_index: A label that is no class.

    Returns:
        As [`kd_dense.functional.labels_at`][] gives them, each ``(N, H, W)``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_same_size(owner, student, teacher)
    if len(segmentation) != len(student):
        raise ValueError(
            f'{owner} expects a segmentation of shape (N, H, W) with N={len(student)} as in the '
            f'maps, got {tuple(segmentation.shape)}'
        )
    return labels_at(segmentation, student.shape[2:], num_classes, ignore_index)


def class_sums(
    features: Tensor, labels: Tensor, valid: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Add up the features of each class in each image.

    Args:
        features: ``(N, C, H, W)``.
        labels: ``(N, H, W)``, from 0 to K - 1.
        valid: Same shape: which of them count.
        num_classes: K.

    Returns:
        The sums ``(N, K, C)``, and how many positions each has, ``(N, K)``.

    Examples:
        >>> features = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
        >>> labels = torch.tensor([[[0, 1, 1]]])
        >>> sums, counts = class_sums(features, labels, labels >= 0, num_classes=2)
        >>> sums[0, :, 0], counts[0]
        (tensor([1., 6.]), tensor([1., 2.]))
    """
    classes = torch.arange(num_classes, device=labels.device)[:, None]
    members = (labels.flatten(1)[:, None] == classes) & valid.flatten(1)[:, None]
    weights = members.to(features.dtype)
    return weights @ features.flatten(2).mT, weights.sum(2)


def region_centres(
    features: Tensor, segmentation: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """The mean direction of the features of each class in each image, as CIRKD keeps it.

    The feature at each position is divided by its 2-norm, and so is the mean.

    Args:
        features: ``(N, C, H, W)``, any float dtype.
        segmentation: Class of every pixel, ``(N, H', W')``, integers.
        num_classes: K.
        ignore_index: A label that is no class.

    Returns:
        The centres ``(N, K, C)``, at least float32, and 0 where the image has no such class; and
        whether it has, ``(N, K)``.

    Examples:
        >>> features = torch.tensor([[3.0, 0.0, 0.0], [0.0, 5.0, 9.0]]).view(1, 2, 1, 3)
        >>> centres, there = region_centres(features, torch.tensor([[[0, 1, 1]]]), 3)
        >>> centres[0]
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
        >>> there[0]
        tensor([ True,  True, False])
    """
    labels, valid = labels_at(segmentation, features.shape[2:], num_classes, ignore_index)
    directions = torch.nn.functional.normalize(at_least_float32(features), dim=1)
    sums, counts = class_sums(directions, labels, valid, num_classes)
    means = sums / counts.clamp(min=1)[..., None]
    return torch.nn.functional.normalize(means, dim=2), counts > 0
