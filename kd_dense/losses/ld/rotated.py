"""Localization distillation (LD) for rotated boxes, whose angle has a distribution too.

Zheng et al., "Localization Distillation for Object Detection", TPAMI 2023.
https://arxiv.org/abs/2204.05957
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32, check_choice
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.ld.head_targets import HeadTargets
from kd_dense.losses.ld.ld import (
    check_classes,
    check_maps,
    check_settings,
    level_means,
    prior_divergence,
)
from kd_dense.losses.ld.regions import nearby_region

__all__ = ['RotatedLDLoss', 'region_around', 'rotated_ld_loss']

Around = Literal['hull', 'unturned']


def rotated_ld_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    ld_weight: float = 10.0,
    kd_weight: float = 20.0,
    temperature: float = 5.0,
    kd_temperature: float = 5.0,
    topk: int = 9,
    around: Around = 'hull',
) -> dict[str, Tensor]:
    r"""Match the distributions of rotated boxes, and the classes, on anchors near an object.

    A head with such distributions predicts, for each of the five numbers of a box, n + 1 logits
    (x, y, width, height and angle). With $\ell_i$, the ``mean_kl`` of such a distribution at
    temperature T, summed over the five of anchor i, $k_i$, that of the class logits at the
    temperature of ``kd``, and $v_i$, the weight of the anchor
    ([`kd_dense.losses.ld.regions.nearby_region`][]), the parts are

    $$
    \mathrm{ld} = w_\mathrm{ld} \sum_{\mathrm{levels}}
        \underset{i:\ v_i > 0}{\mathrm{mean}}\ v_i \ell_i,
    \qquad
    \mathrm{kd} = w_\mathrm{kd} \sum_{\mathrm{levels}}
        \underset{i:\ v_i > 0}{\mathrm{mean}}\ v_i k_i
    $$

    Where [`kd_dense.losses.ld.ld.ld_loss`][] has a main region and one around it, this has one
    that covers both, and means in place of sums.

    Args:
        student: What the head yields, L levels: L maps of class logits
            ``(N, K * num_classes, H, W)``, then L of box distributions
            ``(N, K * 5 * (n + 1), H, W)``; what follows is not looked at.
        teacher: Same shapes. No gradient flows into it.
        head_targets: What the student's head computed for its own loss; its priors are anchors.
        ld_weight: Factor on ``ld``. A part of weight 0 costs nothing.
        kd_weight: Factor on ``kd``. It compares a softmax over the classes, which says nothing of
            a single class: there this must be 0.
        temperature: T of ``ld``, ``> 0``.
        kd_temperature: T of ``kd``, ``> 0``.
        topk: How many anchors of a level set the threshold of the region.
        around: What stands for a rotated box where it is compared with anchors: ``'hull'`` is the
            upright box around it. ``'unturned'`` reproduces the authors' code, which takes the
            box at an angle of 0, so that a long object turned by 90 degrees has its region
            across it.

    Returns:
        The weighted parts ``ld`` and ``kd``: scalars, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.

    Examples:
        >>> targets = HeadTargets(
        ...     priors=[torch.tensor([[0.0, 0.0, 32.0, 32.0], [8.0, 0.0, 40.0, 32.0]])],
        ...     labels=[torch.tensor([[0, 1]])],
        ...     label_weights=[torch.ones(1, 2)],
        ...     valid=[torch.ones(1, 2, dtype=torch.bool)],
        ...     boxes=[torch.tensor([[0.0, 0.0, 32.0, 32.0]])],
        ...     num_classes=1,
        ...     strides=[8],
        ...     rotated=[torch.tensor([[16.0, 16.0, 32.0, 32.0, 0.0]])],
        ... )
        >>> maps = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 5 * 3, 1, 2)]
        >>> taught = [maps[0], torch.arange(30.0).view(1, 15, 1, 2)]
        >>> parts = rotated_ld_loss(maps, taught, targets, kd_weight=0)
        >>> {name: round(part.item(), 3) for name, part in parts.items()}
        {'ld': 17.093, 'kd': 0.0}
    """
    _check_arguments(
        'rotated_ld_loss',
        ld_weight=ld_weight,
        kd_weight=kd_weight,
        temperature=temperature,
        kd_temperature=kd_temperature,
        topk=topk,
        around=around,
    )
    check_classes('rotated_ld_loss', head_targets, kd_weight=kd_weight)
    anchors = check_maps(student, teacher, head_targets)
    levels = len(anchors)
    parts = dict.fromkeys(('ld', 'kd'), 0 * at_least_float32(student[levels - 1]).sum())
    if not ld_weight and not kd_weight:
        return parts
    region = region_around(head_targets, topk, around)

    def mean(maps: slice, sides: int, temperature: float) -> Tensor:
        apart = prior_divergence(student[maps], teacher[maps], anchors, sides, temperature)
        return level_means(apart * region, region > 0, head_targets.sizes).sum()

    if ld_weight > 0:
        boxes = slice(levels, 2 * levels)
        parts['ld'] = ld_weight * mean(boxes, head_targets.sides, temperature)
    if kd_weight > 0:
        parts['kd'] = kd_weight * mean(slice(levels), 1, kd_temperature)
    return parts


def region_around(head_targets: HeadTargets, topk: int, around: Around) -> Tensor:
    """Weights of the anchors near an object, ``(N, A)``.

    Raises:
        ValueError: If the priors are points, or boxes are to be unturned that are not rotated.
    """
    boxes = head_targets.boxes
    if around == 'unturned':
        if head_targets.rotated is None:
            raise ValueError("around='unturned' expects rotated boxes, and these are upright")
        boxes = [
            torch.cat([b[:, :2] - b[:, 2:4] / 2, b[:, :2] + b[:, 2:4] / 2], 1)
            for b in head_targets.rotated
        ]
    valid = torch.cat(head_targets.valid, 1)
    return nearby_region(head_targets.priors, valid, boxes, topk)


class RotatedLDLoss(DistillLoss):
    """Module form of [`rotated_ld_loss`][], times ``weight``; its tap is the dense head.

    The defaults are the authors' for Rotated RetinaNet with the Gaussian Wasserstein distance
    (GWD); with the Kullback-Leibler divergence (KLD) both weights are 15.

    Args:
        weight: Factor on both parts.
        ld_weight: See [`rotated_ld_loss`][], as the other arguments.

    Examples:
        >>> RotatedLDLoss(kd_weight=0).parts
        ('ld', 'kd')
    """

    needs = ('head_targets',)
    parts = ('ld', 'kd')
    all_maps = True
    adaptable = False

    def __init__(
        self,
        weight: float = 1.0,
        ld_weight: float = 10.0,
        kd_weight: float = 20.0,
        temperature: float = 5.0,
        kd_temperature: float = 5.0,
        topk: int = 9,
        around: Around = 'hull',
    ) -> None:
        super().__init__(weight)
        self.settings: dict[str, Any] = dict(
            ld_weight=ld_weight,
            kd_weight=kd_weight,
            temperature=temperature,
            kd_temperature=kd_temperature,
            topk=topk,
            around=around,
        )
        _check_arguments('RotatedLDLoss', **self.settings)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], head_targets: HeadTargets
    ) -> dict[str, Tensor]:
        parts = rotated_ld_loss(student, teacher, head_targets, **self.settings)
        return {name: self.weight * part for name, part in parts.items()}


def _check_arguments(owner: str, *, around: Around, **settings: Any) -> None:
    check_settings(owner, **settings)
    check_choice(owner, 'around', around, Around)
