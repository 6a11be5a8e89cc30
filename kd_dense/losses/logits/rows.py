"""Class logits as this family compares them: a row of classes at each position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import (
    divide_over_ranks,
    in_blocks,
    labels_at,
    softened,
    standardised,
    two_class_logits,
)

__all__ = [
    'Rows',
    'check_softmax',
    'cross_entropy_at',
    'labels_of',
    'map_blocks',
    'mean_of_valid',
    'rows_of',
]

STANDARDISE_EPS = 1e-7


class Rows(NamedTuple):
    """Logits of student and teacher, ``(N, K, H, W)``; a row ``(K,)`` at each position."""

    student: Tensor
    teacher: Tensor


def rows_of(
    owner: str,
    student: Tensor,
    teacher: Tensor,
    standardise: bool = False,
    sigmoid: bool | None = None,
) -> Rows:
    """Check two logits and bring them into one form.

    Args:
        owner: Who asks, for messages.
        student: ``(N, K, H, W)``, or ``(R, K)`` as of regions.
        teacher: Same shape. It is detached.
        standardise: Whether each row loses its mean and is divided by its standard deviation.
        sigmoid: Whether each channel is a logit of its own.

    Returns:
        Maps; those of ``(R, K)`` are one of R positions. A single channel is made those of two
        classes, unless it is a logit of its own.

    Raises:
        ValueError: If the shapes differ, or there are too few classes to standardise.
    """
    if student.shape != teacher.shape or student.dim() not in (2, 4):
        raise ValueError(
            f'{owner} expects logits of one shape, (N, K, H, W) or (R, K), got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; '
            'kd_dense.adapters.resize gives a student map the size of the teacher map'
        )
    if standardise and (sigmoid or student.shape[1] < 3):
        raise ValueError(
            f'{owner}: standardise=True leaves nothing of the logits of two classes, whose '
            'difference is always the same then, nor of sigmoids, which are two each: expected '
            f'logits of 3 classes or more, got {student.shape[1]} channels with sigmoid={sigmoid}'
        )
    maps = [student, teacher.detach()]
    if student.dim() == 2:
        maps = [x.T[None, :, :, None] for x in maps]
    if not sigmoid:
        maps = [two_class_logits(x) for x in maps]
    if standardise:
        maps = [standardised(x, [1], STANDARDISE_EPS) for x in maps]
    return Rows(*maps)


def check_softmax(owner: str, sigmoid: bool | None) -> None:
    """Raise ``ValueError`` where the channels are said to be sigmoids."""
    if sigmoid:
        raise ValueError(
            f'{owner} compares a class with the others, which takes a softmax over the classes, '
            'and the channels of this head are sigmoids, each a logit of its own: take KDLoss or '
            'DISTLoss, which have a form for them'
        )


def labels_of(
    owner: str, segmentation: Tensor, rows: Rows, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The class of each row, and whether it has one.

    Args:
        owner: Who asks, for messages.
        segmentation: ``(N, H', W')``, integers; or ``(R,)``, a class for each region.
        rows: What [`rows_of`][] gives.
        ignore_index: A label that is no class.

    Returns:
        Labels ``(N, H, W)``, 0 where there is none, and whether there is one.

    Raises:
        ValueError: If the labels belong to another batch, or are no integers.
    """
    images, classes, *size = rows.teacher.shape
    fits = segmentation.dim() == 3 and len(segmentation) == images
    if segmentation.dim() == 1:
        fits = size == [len(segmentation), 1]
        segmentation = segmentation[None, :, None]
    if not fits:
        raise ValueError(
            f'{owner} expects a segmentation of shape (N, H, W) with N={images} as in the '
            f'logits, or (R,) for logits (R, K), got {tuple(segmentation.shape)}'
        )
    return labels_at(segmentation, size, classes, ignore_index)


def mean_of_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over the positions of all processes that are valid, or over all; 0 where none is.

    Examples:
        >>> values = torch.tensor([1.0, 2.0, 6.0])
        >>> mean_of_valid(values, torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    if valid is None:
        return values.mean() if values.numel() else values.sum()
    return divide_over_ranks(values.where(valid, 0).sum(), valid.sum().to(values.dtype))


def cross_entropy_at(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The divergence of each row, as in a distillation loss, and the teacher's entropy with it.

    $$
    - T^2 \sum_i \sigma(t / T)_i \, \log\, \sigma(s / T)_i
    $$

    Args:
        student: Logits, ``(N, K, H, W)``.
        teacher: Same shape.
        temperature: T.

    Returns:
        ``(N, H, W)``, at least float32.

    Examples:
        >>> cross_entropy_at(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
        tensor([[[0.6931]]])
    """
    student, teacher = softened(student, temperature), softened(teacher, temperature)
    return temperature**2 * F.cross_entropy(student, teacher.softmax(1), reduction='none')


def map_blocks(*maps: Tensor, classes: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """Cut maps ``(N, any, P)`` alike, between positions."""
    positions = maps[0].shape[2]
    for images in in_blocks(*maps, dim=0, width=classes * positions, dtype=dtype):
        yield from in_blocks(*images, dim=2, width=classes, dtype=dtype)
