"""What a dense detection head compares its predictions with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_dense.functional import mean_over_ranks

__all__ = ['HeadTargets', 'anchors_of']


class HeadTargets(NamedTuple):
    """What a dense detection head compares its predictions with.

    Lists have one entry for each level, but ``boxes``. A level of ``(H, W)`` positions with
    ``K`` anchors each has ``A = H W K`` priors: row by row, the anchors of a position after
    each other.

    Attributes:
        priors: Anchor boxes ``(A, 4)``: x1, y1, x2, y2 in pixels of the batch; or, of a head
            without anchors, points ``(A, 2)``: x, y.
        labels: Class that each prior was assigned, ``(N, A)``; ``num_classes`` is background.
        label_weights: Their weights in the head's loss, ``(N, A)``.
        valid: Which priors lie in the image, ``(N, A)``, bool: a head leaves those in the
            padding out. All, for a head that has no such rule.
        boxes: Ground truth of each image, ``(n, 4)``: x1, y1, x2, y2 in pixels; n may be 0. Around
            rotated boxes these are the smallest upright ones.
        num_classes: Number of classes without background.
        strides: Pixels from one position to the next, the unit of the box distributions.
        centerness: Of a head without anchors, how near to the middle of its object each positive
            lies, 0 to 1, ``(N, A)``; 0 for others. None, if the head has anchors.
        rotated: Of a detector of rotated boxes, these, ``(n, 5)``: x, y, width, height, angle.
    """

    priors: list[Tensor]
    labels: list[Tensor]
    label_weights: list[Tensor]
    valid: list[Tensor]
    boxes: list[Tensor]
    num_classes: int
    strides: list[int]
    centerness: list[Tensor] | None = None
    rotated: list[Tensor] | None = None

    @property
    def sides(self) -> int:
        """Numbers that a box is predicted by, each with a distribution: 4, or 5 with an angle."""
        return 4 if self.rotated is None else 5

    @property
    def positive(self) -> Tensor:
        """Which priors were assigned an object, ``(N, A)`` over all levels, bool."""
        labels = torch.cat(self.labels, 1)
        return (labels >= 0) & (labels < self.num_classes)

    @property
    def positive_levels(self) -> Tensor:
        """Which levels have a positive in the batch of all processes, ``(L,)``, bool."""
        positive = self.positive.split(self.sizes, 1)
        return mean_over_ranks(torch.stack([x.sum() for x in positive]).float()) > 0

    @property
    def sizes(self) -> list[int]:
        """Number of priors of each level."""
        return [labels.shape[1] for labels in self.labels]


def anchors_of(
    student: Sequence[Tensor], teacher: Sequence[Tensor], head_targets: HeadTargets, kinds: int = 2
) -> list[int]:
    """Check the maps of two heads, and return how many anchors a position of each level has.

    Args:
        student: Maps of the student's head: of class logits, of boxes, and what else it yields,
            level by level each.
        teacher: Those of the teacher's.
        head_targets: What tells levels, priors and classes.
        kinds: How many kinds of maps are looked at.

    Raises:
        ValueError: If maps are missing, or do not belong to the same priors and classes.
    """
    sizes, classes = head_targets.sizes, head_targets.num_classes
    levels, images = len(sizes), len(head_targets.boxes)
    for whose, maps in (('student', student), ('teacher', teacher)):
        if len(maps) < kinds * levels:
            raise ValueError(
                f'the head of the {whose} yields {len(maps)} maps, expected {kinds} kinds on '
                f'{levels} levels: class logits, then boxes, then its quality of a box: tap the '
                'dense head, all its levels'
            )
    anchors = []
    for level, size in enumerate(sizes):
        height, width = student[level].shape[-2:]
        per_position, rest = divmod(size, height * width)
        expected = (images, per_position * classes, height, width)
        for whose, maps in (('student', student), ('teacher', teacher)):
            if rest or tuple(maps[level].shape) != expected:
                raise ValueError(
                    f'level {level}: expected class logits (N, K * {classes}, H, W) of {size} '
                    f'priors, N = {images}, of the same size in both models, got '
                    f'{tuple(maps[level].shape)} of the {whose}: both heads need the same '
                    'classes and anchors, and a sigmoid for each class'
                )
        for kind in range(1, kinds):
            index = kind * levels + level
            s, t = student[index].shape, teacher[index].shape
            if s[2:] != (height, width) or t[2:] != (height, width) or s[1] % per_position:
                raise ValueError(
                    f'map {index} of the heads: expected {per_position} x n channels of '
                    f'{(height, width)} positions, got student {tuple(s)} and teacher {tuple(t)}'
                )
        anchors.append(per_position)
    return anchors
