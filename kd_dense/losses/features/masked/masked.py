"""Imitation where it matters: one masked squared error, and what FRS, DeFeat and FGFI make of it.

Du et al., "Distilling Object Detectors with Feature Richness", NeurIPS 2021 (FRS).
https://arxiv.org/abs/2111.00674
Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021 (DeFeat).
https://arxiv.org/abs/2103.14475
Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019 (FGFI).
https://arxiv.org/abs/1906.03609
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import (
    at_least_float32,
    check_choice,
    divide_over_ranks,
    squared_norm,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, check_weights
from kd_dense.losses.features.masked.masks import (
    Anchors,
    anchor_masks,
    object_masks,
    score_masks,
)

__all__ = ['DeFeatLoss', 'FGFILoss', 'FRSLoss', 'masked_loss']

Per = Literal['position', 'number']
Scores = Literal['bbox_head', 'rpn_head']
Outputs = tuple[Sequence[Tensor], Sequence[Tensor]]


def masked_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    masks: Sequence[Tensor],
    per: Per = 'position',
) -> Tensor:
    r"""Squared differences of features under a mask, over the mask, summed over levels.

    $$
    \sum_\mathrm{levels} \frac{1}{Z \sum_{n, p} m_{n, p}}
        \sum_{n, c, p} m_{n, p}\, (s_{n, c, p} - t_{n, c, p})^2
    $$

    The sum of a mask is its mean over the processes of a distributed training. A level whose mask
    is 0 everywhere is worth 0.

    Args:
        student: One map ``(N, C, H, W)`` for each level, any float dtype.
        teacher: Same shapes. No gradient flows into it.
        masks: Of each level, ``(N, 1, H, W)``, ``>= 0`` or bool.
        per: ``'position'`` has Z = 1, a sum over channels; ``'number'`` has Z = C, a mean.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes differ, or there is no such ``per``.

    Examples:
        >>> student = [torch.zeros(1, 2, 1, 2)]
        >>> teacher = [torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])]
        >>> masks = [torch.tensor([[[[True, False]]]])]
        >>> masked_loss(student, teacher, masks), masked_loss(student, teacher, masks, 'number')
        (tensor(10.), tensor(5.))
    """
    check_choice('masked_loss', 'per', per, Per)
    _check_levels('masked_loss', student, teacher, masks)
    channels = [s.shape[1] if per == 'number' else 1 for s in student]
    return _mean_under(_errors(student, teacher), masks, channels)


def _errors(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
    """Squared differences, summed over channels: ``(N, 1, H, W)`` of each level."""
    return [
        squared_norm(at_least_float32(s) - at_least_float32(t.detach()))[:, None]
        for s, t in zip(student, teacher, strict=True)
    ]


def _mean_under(errors: Sequence[Tensor], masks: Sequence[Tensor], counts: list[int]) -> Tensor:
    """Sums of errors ``(N, 1, H, W)`` under masks over those of the masks, level by level."""
    masks = [m.to(e.dtype) for e, m in zip(errors, masks, strict=True)]
    sums = [(e * m).sum() / n for e, m, n in zip(errors, masks, counts, strict=True)]
    return divide_over_ranks(torch.stack(sums), torch.stack([m.sum() for m in masks])).sum()


def _check_levels(owner: str, student: Sequence[Tensor], *others: Sequence[Tensor]) -> None:
    teacher, masks = others
    if not len(student) == len(teacher) == len(masks):
        raise ValueError(
            f'{owner} expects as many maps of both models and masks, got {len(student)} of the '
            f'student, {len(teacher)} of the teacher and {len(masks)} masks'
        )
    for s, t, mask in zip(student, teacher, masks, strict=True):
        check_same_shape(owner, s, t)
        expected = (len(s), 1, *s.shape[2:])
        if mask.shape != expected:
            raise ValueError(
                f'{owner} expects a mask {expected} for maps {tuple(s.shape)}, got '
                f'{tuple(mask.shape)}'
            )


class FRSLoss(DistillLoss):
    r"""Features and classes, where the teacher is sure of an object (FRS); its tap is the neck.

    With the mask m of the teacher's class logits
    ([`score_masks`][kd_dense.losses.features.masked.masks.score_masks]), ``features`` is
    [`masked_loss`][] of the maps, and

    $$
    \text{classes} = \sum_\mathrm{levels} \frac{1}{\sum_{n, p} m_{n, p}}
        \sum_{n, k, p} m_{n, p}\, \mathrm{BCE}\bigl(\mathrm{sigmoid}(s_{n, k, p}),
        \mathrm{sigmoid}(t_{n, k, p})\bigr)
    $$

    compares the class logits of both models. No label is needed. The authors' code could not be
    had: this equals that of United Perception (Apache-2.0), whose weights for Faster R-CNN are the
    defaults, on the logits of its region proposals. There a logit above 17 has no gradient in
    float32, because the logarithm is that of a rounded probability; here it has.

    Args:
        weight: Factor on all parts.
        features: Factor on the part of that name.
        classes: Likewise.
        scores: The head whose class logits are meant: ``'bbox_head'`` of a dense detector, or
            ``'rpn_head'`` of one with region proposals. Its levels are those of the neck.

    Raises:
        ValueError: If a weight is negative or not finite, or there is no such head.

    Examples:
        >>> loss = FRSLoss()
        >>> maps = [torch.zeros(2, 16, 8, 8)]
        >>> outputs = [torch.zeros(2, 3, 8, 8)], [torch.zeros(2, 3, 8, 8)]
        >>> loss(maps, maps, outputs)
        {'features': tensor(0.), 'classes': tensor(0.2079)}
    """

    parts = ('features', 'classes')
    all_maps = True

    def __init__(
        self,
        weight: float = 1.0,
        features: float = 0.002,
        classes: float = 0.1,
        scores: Scores = 'bbox_head',
    ) -> None:
        super().__init__(weight)
        self.weights = check_weights('FRSLoss', features=features, classes=classes)
        check_choice('FRSLoss', 'scores', scores, Scores)
        self.needs = ('head_outputs' if scores == 'bbox_head' else 'rpn_outputs',)

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        head_outputs: Outputs | None = None,
        rpn_outputs: Outputs | None = None,
    ) -> dict[str, Tensor]:
        found = head_outputs if rpn_outputs is None else rpn_outputs
        if found is None:
            raise TypeError(f'FRSLoss expects {self.needs[0]}')
        ours, theirs = (outputs[: len(student)] for outputs in found)
        masks = score_masks(theirs)
        errors = []
        with without_autocast(student[0]):
            for s, t in zip(ours, theirs, strict=True):
                check_same_shape('FRSLoss', s, t)
                s, t = at_least_float32(s), at_least_float32(t.detach()).sigmoid()
                errors.append(
                    F.binary_cross_entropy_with_logits(s, t, reduction='none').sum(1, keepdim=True)
                )
            parts = dict(
                features=masked_loss(student, teacher, masks),
                classes=_mean_under(errors, masks, [1] * len(errors)),
            )
        return {name: self.weight * self.weights[name] * part for name, part in parts.items()}


class DeFeatLoss(DistillLoss):
    r"""Features of objects, and features of the background (DeFeat); its tap is the neck.

    With the masks m of [`object_masks`][kd_dense.losses.features.masked.masks.object_masks],
    the parts are

    $$
    \text{objects} = \frac{w}{2 L}\, \ell(s, t, m), \qquad
    \text{background} = \frac{w'}{2 L}\, \ell(s, t, 1 - m)
    $$

    where $\ell$ is [`masked_loss`][] per number, and $L$ the number of levels. The background is
    all that no object of a level covers, padding too.

    The authors publish no settings for COCO, and their code has no licence: this is written from
    its formulas. United Perception (Apache-2.0) has 4 and 16, the defaults, for Faster R-CNN; the
    authors have 3 and 12 for VOC. Both leave out the paper's part of region proposals.

    Args:
        weight: Factor on all parts.
        objects: $w$.
        background: $w'$.

    Raises:
        ValueError: If a weight is negative or not finite.

    Examples:
        >>> loss = DeFeatLoss()
        >>> maps = [torch.zeros(1, 4, 8, 8)], [torch.ones(1, 4, 8, 8)]
        >>> loss(*maps, boxes=[torch.tensor([[0.0, 0.0, 32.0, 32.0]])], batch_shape=(64, 64))
        {'objects': tensor(2.), 'background': tensor(8.)}
    """

    needs = ('boxes', 'batch_shape')
    parts = ('objects', 'background')
    all_maps = True

    def __init__(
        self, weight: float = 1.0, objects: float = 4.0, background: float = 16.0
    ) -> None:
        super().__init__(weight)
        self.weights = check_weights('DeFeatLoss', objects=objects, background=background)

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        boxes: list[Tensor],
        batch_shape: tuple[int, int],
    ) -> dict[str, Tensor]:
        masks = self.masks(student, boxes, batch_shape)
        _check_levels('DeFeatLoss', student, teacher, masks)
        sides = dict(objects=masks, background=[~mask for mask in masks])
        errors, channels = _errors(student, teacher), [x.shape[1] for x in student]
        half = 0.5 * self.weight / len(student)
        return {
            name: half * self.weights[name] * _mean_under(errors, side, channels)
            for name, side in sides.items()
        }

    @staticmethod
    def masks(
        maps: Sequence[Tensor], boxes: list[Tensor], batch_shape: tuple[int, int]
    ) -> list[Tensor]:
        """The masks of maps, whose strides are powers of two."""
        sizes = [tuple(x.shape[2:]) for x in maps]
        return object_masks(boxes, sizes, [_stride(size, batch_shape) for size in sizes])


def _stride(size: Sequence[int], batch_shape: Sequence[int]) -> int:
    """The power of two that makes maps of this size of a batch; a map may be rounded up."""
    least = max(-(-whole // length) for whole, length in zip(batch_shape, size, strict=True))
    return 1 << (least - 1).bit_length()


class FGFILoss(DistillLoss):
    r"""Features near objects, as anchors tell (FGFI); its tap is the neck, or the map of the RPN.

    $$
    \frac{w}{2}\, \ell(s, t, m)
    $$

    with [`masked_loss`][] per position, and the masks of
    [`anchor_masks`][kd_dense.losses.features.masked.masks.anchor_masks]. Equals the authors'
    code (MIT), of one level; on several, each object lies on one, as in DeFeat's version of it.
    [`LDImitationLoss`][kd_dense.losses.ld.imitation.LDImitationLoss] has a variant whose objects
    lie on all levels.

    Args:
        weight: $w$.

    Examples:
        >>> anchors = Anchors([torch.tensor([[0.0, 0.0, 15.0, 15.0]])], [(8, 8)])
        >>> loss = FGFILoss()
        >>> student = torch.randn(1, 4, 8, 8, requires_grad=True)
        >>> boxes = [torch.tensor([[8.0, 8.0, 24.0, 24.0]])]
        >>> loss([student], [torch.randn(1, 4, 8, 8)], boxes, anchors).backward()
        >>> student.grad.any(1).nonzero().tolist()  # the image, and the only position
        [[0, 1, 1]]
    """

    needs = ('boxes', 'anchors')
    all_maps = True

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__(weight)

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        boxes: list[Tensor],
        anchors: Anchors,
    ) -> Tensor:
        if len(anchors.base) < len(student):
            raise ValueError(
                f'FGFILoss expects the maps that the head with anchors is given, which are '
                f'{len(anchors.base)}, got {len(student)}'
            )
        masks = anchor_masks(boxes, [tuple(x.shape[2:]) for x in student], anchors)
        return 0.5 * self.weight * masked_loss(student, teacher, masks)
