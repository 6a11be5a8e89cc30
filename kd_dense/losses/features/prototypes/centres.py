"""The centre of the features of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_dense.functional import labels_at, unit
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


@torch.no_grad()
def region_centres(units: Tensor, labels: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """The direction of the mean feature of each class in each image, as CIRKD keeps it.

    Args:
        units: Features of length 1, ``(N, C, H, W)``.
        labels: ``(N, H, W)``, from 0 to K - 1.
        valid: Same shape: which of them count.
        num_classes: K.

    Returns:
        ``(N, K, C)``, and 0 where the image has no such class.

    Examples:
        >>> units = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).view(1, 2, 1, 3)
        >>> labels = torch.tensor([[[0, 1, 1]]])
        >>> region_centres(units, labels, labels >= 0, num_classes=3)[0]
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
    """
    return unit(class_sums(units, labels, valid, num_classes)[0])
