"""Localization distillation (LD).

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022.
https://arxiv.org/abs/2102.12252
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kd_dense.functional import (
    at_least_float32,
    better_together,
    check_choice,
    check_published_batch,
    check_temperature,
    divide_over_ranks,
    soft_kl,
)
from kd_dense.losses.base import DistillLoss, check_counts, check_weights
from kd_dense.losses.ld.head_targets import HeadTargets, anchors_of
from kd_dense.losses.ld.regions import DIoU, inside_region, vlr_region

__all__ = ['LDLoss', 'ld_loss']

Region = Literal['vlr', 'inside']
PARTS = ('main', 'vlr', 'kd', 'kd_vlr')


def mean_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    r"""Divergence of softened distributions over n bins, divided by n.

    $$
    \frac{T^2}{n} \mathrm{KL}\bigl(\sigma(t / T) \,\|\, \sigma(s / T)\bigr)
    $$

    Examples:
        >>> student, teacher = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> mean_kl(student, teacher, temperature=1.0, dim=0)
        tensor(0.2311)
    """
    return soft_kl(student, teacher, temperature, dim, 1 / student.shape[dim])


def ld_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    main_weight: float = 0.25,
    vlr_weight: float = 0.25,
    kd_weight: float = 10.0,
    kd_vlr_weight: float = 0.0,
    temperature: float = 10.0,
    kd_temperature: float = 2.0,
    main_factor: float = 4.0,
    vlr_factor: float = 16.0,
    published_batch: int | None = 2,
    region: Region | list[Tensor] = 'vlr',
    topk: int = 9,
    diou: DIoU = 'paper',
    vlr_on_positives: bool = True,
    joint_sides: bool = False,
) -> dict[str, Tensor]:
    r"""Match the distributions of box sides, and the classes, where an object is.

    A head with box distributions predicts, for each of the four sides of a box, n + 1 logits of
    the distance from the prior. With $\ell_i$, the ``mean_kl`` of such a
    distribution at temperature T, summed over the four sides of prior i, and $k_i$, that
    of the class logits at the temperature of ``kd``, the parts are

    $$
    \mathrm{main} = \frac{w_\mathrm{main}}{4} \sum_{i\ \mathrm{positive}} s_i \ell_i,
    \qquad
    \mathrm{vlr} = \frac{w_\mathrm{vlr}}{16} \sum_{i \in \mathrm{VLR}} v_i \ell_i,
    \qquad
    \mathrm{kd} = w_\mathrm{kd} \sum_{\mathrm{levels}}
        \underset{i\ \mathrm{positive}}{\mathrm{mean}}\ k_i
    $$

    and ``kd_vlr``, the same mean over the VLR; $s_i$ is the largest class score of the
    student, a constant for the gradient, and $v_i$ the weight of the region (see
    [`kd_dense.losses.ld.regions.vlr_region`][]). ``main`` and ``vlr`` are sums over the
    images (see ``published_batch``); ``kd`` is multiplied by the head's label weights.

    Settings of the authors' code, where they differ from the defaults (``diou='code'``
    everywhere):

    - GFL: none
    - ATSS: ``vlr_weight=0.0375, vlr_factor=4``
    - FCOS: ``region='inside', vlr_weight=0.0625, vlr_factor=4``
    - RetinaNet: ``main_weight=5, vlr_weight=0.15, vlr_factor=4, kd_temperature=8,
      vlr_on_positives=False, joint_sides=True``

    Args:
        student: What the head yields, L levels: L maps of class logits
            ``(N, K * num_classes, H, W)``, then L of box distributions
            ``(N, K * 4 * (n + 1), H, W)``; what follows is not looked at.
        teacher: Same shapes. No gradient flows into it.
        head_targets: What the student's head computed for its own loss.
        main_weight: Factor on ``main``. A part of weight 0 costs nothing.
        vlr_weight: Factor on ``vlr``.
        kd_weight: Factor on ``kd``. It compares a softmax over the classes, which says nothing of
            a single class: there this must be 0, and ``kd_vlr_weight`` too.
        kd_vlr_weight: Factor on ``kd_vlr``. The authors use it on PASCAL VOC; their code for
            COCO multiplies it by 0.
        temperature: T of ``main`` and ``vlr``, ``> 0``.
        kd_temperature: T of ``kd`` and ``kd_vlr``, ``> 0``.
        main_factor: Divisor of the sum in ``main``.
        vlr_factor: Divisor of the sum in ``vlr``.
        published_batch: ``main`` and ``vlr`` are the mean over images times this, the images on
            each of the authors' GPUs. ``None`` sums over the batch as their code does.
        region: ``'vlr'`` is the paper's. ``'inside'`` takes the priors with their centre in a
            box that are not positive, weighted by the student's score, for heads without
            anchors. Or the weights of the priors themselves, ``(N, A)`` for each level.
        topk: How many anchors of a level set the threshold of the VLR.
        diou: ``'paper'``, or ``'code'`` for the calculator of the authors' code.
        vlr_on_positives: Whether a positive may belong to the VLR too.
        joint_sides: Take one softmax over the bins of all four sides of a box together, a slip
            of the authors' code for RetinaNet.

    Returns:
        The weighted parts ``main``, ``vlr``, ``kd`` and ``kd_vlr``: scalars, at least float32.

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
        ... )
        >>> maps = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 4 * 3, 1, 2)]
        >>> taught = [maps[0], torch.arange(24.0).view(1, 12, 1, 2)]
        >>> parts = ld_loss(maps, taught, targets, kd_weight=0)
        >>> {name: round(part.item(), 3) for name, part in parts.items()}
        {'main': 0.11, 'vlr': 0.088, 'kd': 0.0, 'kd_vlr': 0.0}
    """
    _check_arguments(
        'ld_loss',
        main_weight=main_weight,
        vlr_weight=vlr_weight,
        kd_weight=kd_weight,
        kd_vlr_weight=kd_vlr_weight,
        temperature=temperature,
        kd_temperature=kd_temperature,
        main_factor=main_factor,
        vlr_factor=vlr_factor,
        published_batch=published_batch,
        region=region,
        topk=topk,
        diou=diou,
    )
    check_classes('ld_loss', head_targets, kd_weight=kd_weight, kd_vlr_weight=kd_vlr_weight)
    anchors = check_maps(student, teacher, head_targets)
    levels, images = len(anchors), len(head_targets.boxes)
    batch = (published_batch or images) / images
    classes, taught_classes = student[:levels], teacher[:levels]
    boxes, taught_boxes = student[levels : 2 * levels], teacher[levels : 2 * levels]
    positive = head_targets.positive

    zero = 0 * at_least_float32(classes[-1]).sum()
    parts = dict.fromkeys(PARTS, zero)
    score = valuable = zero
    if main_weight > 0 or (vlr_weight > 0 and region == 'inside'):
        score = largest_score(classes, anchors)
    if vlr_weight > 0 or kd_vlr_weight > 0:
        valuable = valuable_priors(head_targets, region, topk, diou)
        if not vlr_on_positives:
            valuable = valuable * ~positive

    if main_weight > 0 or vlr_weight > 0:
        sides = 1 if joint_sides else head_targets.sides
        divergence = prior_divergence(boxes, taught_boxes, anchors, sides, temperature)
    if main_weight > 0:
        total = (divergence * (score * positive)).sum()
        parts['main'] = total * (main_weight / main_factor * batch)
    if vlr_weight > 0:
        weights = score * valuable if region == 'inside' else valuable
        total = (divergence * weights).sum()
        parts['vlr'] = total * (vlr_weight / vlr_factor * batch)

    if kd_weight > 0 or kd_vlr_weight > 0:
        divergence = prior_divergence(classes, taught_classes, anchors, 1, kd_temperature)
        divergence = divergence * torch.cat(head_targets.label_weights, 1)
    if kd_weight > 0:
        parts['kd'] = kd_weight * level_means(divergence, positive, head_targets.sizes).sum()
    if kd_vlr_weight > 0:
        means = level_means(divergence, valuable > 0, head_targets.sizes)
        parts['kd_vlr'] = kd_vlr_weight * means.sum()
    return parts


def valuable_priors(
    head_targets: HeadTargets, region: Region | list[Tensor], topk: int, diou: DIoU
) -> Tensor:
    """Weights of the region beside the positives, ``(N, A)``."""
    if not isinstance(region, str):
        return torch.cat(region, 1)
    priors, boxes = head_targets.priors, head_targets.boxes
    valid = torch.cat(head_targets.valid, 1)
    if region == 'vlr':
        return vlr_region(priors, valid, boxes, topk, diou)
    return (inside_region(priors, valid, boxes) & ~head_targets.positive).to(priors[0].dtype)


def prior_divergence(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    anchors: list[int],
    sides: int,
    temperature: float,
) -> Tensor:
    """Sum the ``mean_kl`` of the ``sides`` distributions of each prior, ``(N, A)``."""
    if len({*anchors}) == 1 and better_together(student):  # all levels in the steps of one
        ours, theirs = (
            torch.cat([at_least_float32(x).flatten(2) for x in maps], 2).unflatten(
                1, (anchors[0], sides, -1)
            )
            for maps in (student, [x.detach() for x in teacher])
        )
        return by_prior(mean_kl(ours, theirs, temperature, dim=3).sum(2))
    levels = []
    for s, t, k in zip(student, teacher, anchors, strict=True):
        s, t = (at_least_float32(x).unflatten(1, (k, sides, -1)) for x in (s, t.detach()))
        levels.append(by_prior(mean_kl(s, t, temperature, dim=3).sum(2)))
    return torch.cat(levels, 1)


def largest_score(classes: Sequence[Tensor], anchors: list[int]) -> Tensor:
    """Largest class score of each prior, ``(N, A)``, without gradient."""
    levels = [
        by_prior(at_least_float32(x.detach()).unflatten(1, (k, -1)).amax(2))
        for x, k in zip(classes, anchors, strict=True)
    ]
    return torch.cat(levels, 1).sigmoid()


def by_prior(maps: Tensor) -> Tensor:
    """From ``(N, K, H, W)``, or ``(N, K, P)`` of positions, to ``(N, A)``."""
    return maps.flatten(2).mT.flatten(1)


def level_means(values: Tensor, members: Tensor, sizes: list[int]) -> Tensor:
    """The mean over the members of each level, 0 for a level without any, ``(L,)``.

    Args:
        values: ``(N, A)``.
        members: ``(N, A)``, bool.
        sizes: How many of the A belong to each level.
    """
    both = torch.stack([(values * members).sum(0), members.sum(0, dtype=values.dtype)])
    totals, counts = torch.stack([x.sum(1) for x in both.split(sizes, 1)], 1).unbind()
    return divide_over_ranks(totals, counts)


class LDLoss(DistillLoss):
    """Module form of [`ld_loss`][], times ``weight``; its tap is the dense head.

    The defaults are the authors' setting for GFL, "Main KD + Main LD + VLR LD"; their setting
    "Main LD" is ``vlr_weight=0, kd_weight=0``.

    Args:
        weight: Factor on all parts.
        main_weight: See [`ld_loss`][], as the other arguments.

    Examples:
        >>> LDLoss(vlr_weight=0, kd_weight=0).parts
        ('main', 'vlr', 'kd', 'kd_vlr')
    """

    needs = ('head_targets',)
    parts = PARTS
    all_maps = True
    adaptable = False

    def __init__(
        self,
        weight: float = 1.0,
        main_weight: float = 0.25,
        vlr_weight: float = 0.25,
        kd_weight: float = 10.0,
        kd_vlr_weight: float = 0.0,
        temperature: float = 10.0,
        kd_temperature: float = 2.0,
        main_factor: float = 4.0,
        vlr_factor: float = 16.0,
        published_batch: int | None = 2,
        region: Region = 'vlr',
        topk: int = 9,
        diou: DIoU = 'paper',
        vlr_on_positives: bool = True,
        joint_sides: bool = False,
    ) -> None:
        super().__init__(weight)
        self.settings: dict[str, Any] = dict(
            main_weight=main_weight,
            vlr_weight=vlr_weight,
            kd_weight=kd_weight,
            kd_vlr_weight=kd_vlr_weight,
            temperature=temperature,
            kd_temperature=kd_temperature,
            main_factor=main_factor,
            vlr_factor=vlr_factor,
            published_batch=published_batch,
            region=region,
            topk=topk,
            diou=diou,
        )
        _check_arguments('LDLoss', **self.settings)
        self.settings.update(vlr_on_positives=vlr_on_positives, joint_sides=joint_sides)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], head_targets: HeadTargets
    ) -> dict[str, Tensor]:
        weights = {f'{part}_weight': self.settings[f'{part}_weight'] for part in PARTS}
        weights = {name: self.weight * weight for name, weight in weights.items()}
        return ld_loss(student, teacher, head_targets, **{**self.settings, **weights})


def _check_arguments(
    owner: str,
    *,
    temperature: float,
    kd_temperature: float,
    main_factor: float,
    vlr_factor: float,
    published_batch: int | None,
    region: Region | list[Tensor],
    topk: int,
    diou: DIoU,
    **weights: float,
) -> None:
    check_settings(owner, temperature, kd_temperature, topk, **weights)
    for name, value in (('main_factor', main_factor), ('vlr_factor', vlr_factor)):
        if not value > 0:
            raise ValueError(f'{owner} expects {name} > 0, got {name}={value}')
    if isinstance(region, str):
        check_choice(owner, 'region', region, Region)
    check_choice(owner, 'diou', diou, DIoU)
    check_published_batch(owner, published_batch)


def check_settings(
    owner: str, temperature: float, kd_temperature: float, topk: int, **weights: float
) -> None:
    """Raise ``ValueError`` unless these can be settings of a loss on distributions."""
    check_weights(owner, **weights)
    check_temperature(temperature)
    check_temperature(kd_temperature)
    check_counts(owner, topk=topk)


def check_classes(owner: str, head_targets: HeadTargets, **weights: float) -> None:
    """Raise ``ValueError`` if a single class has a weight: a softmax over it says nothing."""
    if head_targets.num_classes == 1 and any(weights.values()):
        given = ' and '.join(f'{name}={value}' for name, value in weights.items())
        raise ValueError(
            f'{owner}: kd compares a softmax over the classes, which is 1 for a single class '
            f'whatever its logit; got {given}: set {"both" if len(weights) > 1 else "it"} to 0'
        )


def check_maps(
    student: Sequence[Tensor], teacher: Sequence[Tensor], head_targets: HeadTargets
) -> list[int]:
    """Check the maps of two heads with distributions; anchors of a position of each level."""
    anchors = anchors_of(student, teacher, head_targets)
    levels = slice(len(anchors), 2 * len(anchors))
    check_distributions(student[levels], teacher[levels], anchors, head_targets.sides)
    return anchors


def check_distributions(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    anchors: Sequence[int],
    sides: int,
    otherwise: str = '',
) -> None:
    """Raise ``ValueError`` unless both are distributions of as many bins."""
    for level, (s, t, count) in enumerate(zip(student, teacher, anchors, strict=True)):
        bins, rest = divmod(s.shape[1], sides * count)
        if s.shape != t.shape or rest or bins < 2:
            raise ValueError(
                f'level {level}: expected box distributions of {sides * count} * (n + 1) channels '
                f'with n >= 1, the same in both models, got student {tuple(s.shape)} and teacher '
                f'{tuple(t.shape)}: does each head predict distributions, as GFLHead does?'
                f'{otherwise}'
            )
