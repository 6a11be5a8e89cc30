"""What a dense detection head compares its predictions with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['HeadTargets']


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
    def sizes(self) -> list[int]:
        """Number of priors of each level."""
        return [labels.shape[1] for labels in self.labels]
