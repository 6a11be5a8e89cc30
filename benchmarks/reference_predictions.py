"""Losses on predictions as published code computes them, to be measured against.

Level by level, all maps are permuted and flattened to rows of classes and of sides, a copy each;
sigmoids, cross-entropy and weights are steps of autograd, which keeps each of their maps; and
overlaps go through a general function of two lists of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair
from benchmarks.reference_ld import BINS, Outputs, make_head
from kd_dense.losses import (
    HeadBoxes,
    HeadTargets,
    adl_loss,
    bckd_loss,
    crosskd_loss,
    pgd_class_loss,
)
from kd_dense.losses.predictions.boxes import (
    Decoded,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from kd_dense.losses.predictions.key_regions import KeyRegions, key_regions

__all__ = ['cases', 'plain_adl', 'plain_bckd', 'plain_crosskd', 'plain_pgd']

EPS = torch.finfo(torch.float32).eps


def boxes_of(targets: HeadTargets) -> HeadBoxes:
    """Decodes box distributions of one anchor at each position."""

    def decode(maps: object) -> Decoded:
        boxes = [
            decode_distances(p, stride * expected_distances(rows_of_priors(m, 1)))
            for p, stride, m in zip(targets.priors, targets.strides, maps, strict=True)  # type: ignore[call-overload]
        ]
        return Decoded(targets.priors, boxes)

    return HeadBoxes(decode, decode)


def plain_rows(maps: Tensor, width: int) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, width)


def plain_boxes(maps: Tensor, anchors: Tensor, stride: int) -> Tensor:
    """Boxes in strides, ``(N * A, 4)``."""
    rows = plain_rows(maps, maps.shape[1])
    bins = maps.shape[1] // 4
    project = torch.arange(bins, dtype=maps.dtype, device=maps.device)
    distances = F.linear(rows.reshape(-1, bins).softmax(1), project[None]).reshape(-1, 4)
    centers = ((anchors[:, :2] + anchors[:, 2:]) / 2 / stride).repeat(len(maps), 1)
    return torch.stack(
        [
            centers[:, 0] - distances[:, 0],
            centers[:, 1] - distances[:, 1],
            centers[:, 0] + distances[:, 2],
            centers[:, 1] + distances[:, 3],
        ],
        -1,
    )


def plain_giou(one: Tensor, other: Tensor) -> Tensor:
    area1 = (one[:, 2] - one[:, 0]) * (one[:, 3] - one[:, 1])
    area2 = (other[:, 2] - other[:, 0]) * (other[:, 3] - other[:, 1])
    sides = torch.min(one[:, 2:], other[:, 2:]) - torch.max(one[:, :2], other[:, :2])
    shared = sides.clamp(min=0).prod(1)
    union = (area1 + area2 - shared).clamp(min=1e-6)
    hull = torch.max(one[:, 2:], other[:, 2:]) - torch.min(one[:, :2], other[:, :2])
    hull_area = hull.clamp(min=0).prod(1).clamp(min=1e-6)
    return shared / union - (hull_area - union) / hull_area


def plain_bckd(student: list[Tensor], teacher: list[Tensor], targets: HeadTargets) -> Tensor:
    """What ``kd_dense.losses.bckd_loss`` gives, both parts together."""
    levels, classes = len(targets.priors), targets.num_classes
    n = targets.positive.sum().clamp(min=1).to(student[0].dtype) + EPS
    total = torch.zeros((), dtype=student[0].dtype, device=student[0].device)
    for level in range(levels):
        weight = targets.label_weights[level].reshape(-1)
        s, t = (plain_rows(maps[level], classes) for maps in (student, teacher))
        q = t.sigmoid()
        apart = (q - s.sigmoid()).abs()
        entropy = F.binary_cross_entropy_with_logits(s, q, reduction='none')
        total = total + ((apart * entropy).sum(1) * weight).sum() / n
        ours, theirs = (
            plain_boxes(maps[levels + level], targets.priors[level], targets.strides[level])
            for maps in (student, teacher)
        )
        weight = apart.detach().max(1)[0] * weight
        total = total + 4 * ((1 - plain_giou(ours, theirs)) * weight).sum() / n
    return total


def plain_adl(student: list[Tensor], teacher: list[Tensor], targets: HeadTargets) -> Tensor:
    """What ``kd_dense.losses.adl_loss`` gives."""
    total = n = torch.zeros((), dtype=student[0].dtype, device=student[0].device)
    for level, weight in enumerate(targets.label_weights):
        s, t = (plain_rows(maps[level], targets.num_classes) for maps in (student, teacher))
        q = t.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(s, q, reduction='none')
        yes, no = -F.logsigmoid(s), -F.logsigmoid(-s)
        values = (1 - torch.exp(-entropy)) ** 2 * (0.5 * q * yes + 0.5 * (1 - q) * no)
        total = total + (values.sum(1) * (weight.reshape(-1) > 0)).sum()
        n = n + q.pow(1.8).sum()
    return total / n


def plain_crosskd(student: list[Tensor], teacher: list[Tensor], targets: HeadTargets) -> Tensor:
    """What ``kd_dense.losses.crosskd_loss`` gives of distributions, both parts together."""
    levels, classes, s0 = len(targets.priors), targets.num_classes, student[0]
    n = targets.positive.sum().clamp(min=1).to(s0.dtype) + EPS
    total = boxes = weights = torch.zeros((), dtype=s0.dtype, device=s0.device)
    for level in range(levels):
        label_weight = targets.label_weights[level].reshape(-1)
        s, t = (plain_rows(maps[level], classes) for maps in (student, teacher))
        q = t.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(s, q, reduction='none')
        rows = (q - s.sigmoid()).abs() * entropy
        total = total + (rows * label_weight[:, None].repeat(1, classes)).sum() / n
        s, t = (
            plain_rows(maps[levels + level], 4 * BINS).reshape(-1, BINS)
            for maps in (student, teacher)
        )
        apart = F.kl_div(s.log_softmax(1), t.softmax(1), reduction='none').sum(1)
        weight = q.max(1)[0] * (label_weight > 0)
        boxes = boxes + (apart * weight[:, None].repeat(1, 4).reshape(-1)).sum() / (4 + EPS)
        weights = weights + weight.sum()
    return total + boxes / weights


def plain_pgd(student: list[Tensor], teacher: list[Tensor], regions: KeyRegions) -> Tensor:
    """What ``kd_dense.losses.pgd_class_loss`` gives, all parts together."""
    total = torch.zeros((), dtype=student[0].dtype, device=student[0].device)
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        images, _, height, width = s.shape

        def places(x: Tensor) -> Tensor:
            mean = x.abs().mean(1).view(len(x), -1)
            return (mean / 0.8).softmax(1).view(len(x), *x.shape[2:]) * x[0, 0].numel()

        def kinds(x: Tensor) -> Tensor:
            return (x.abs() / 0.8).softmax(1) * x.shape[1]

        for factor, masks in ((0.04, regions.weights), (0.02, regions.background)):
            mask = masks[level]
            for image in range(images):
                one = mask[image] / (mask[image] > 0).sum().clamp(min=1)
                root = (places(t)[image] * one).sqrt() * kinds(t)[image].sqrt()
                part = F.mse_loss(s[image] * root, t[image] * root, reduction='sum')
                total = total + factor * (1 + level / 4) * part / images
        apart = (kinds(s) - kinds(t)).abs().sum() / (images * height * width)
        apart = apart + (places(s) - places(t)).abs().sum() / images
        total = total + 0.0008 * apart
    return total


def make_pgd(device: str, small: bool) -> Pair:
    (_, taught), targets = make_head(device, small)
    generator = torch.Generator().manual_seed(1)
    levels = len(targets.priors)
    shapes = [x.shape[2:] for x in taught[:levels]]
    dtype = taught[0].dtype
    student, teacher = (
        [
            torch.randn(2, 8 if small else 256, *shape, generator=generator, dtype=dtype).to(
                device
            )
            for shape in shapes
        ]
        for _ in range(2)
    )
    for maps in student:
        maps.requires_grad_()
    labels = [torch.zeros(len(b), dtype=torch.long, device=device) for b in targets.boxes]
    regions = key_regions(
        taught[: 2 * levels], boxes_of(targets), targets.boxes, labels, jitter=0.0
    )

    def call(function: Callable[..., Tensor]) -> list[Tensor]:
        value = function(student, teacher, regions)
        return [value.detach(), *torch.autograd.grad(value, student)]

    def ours(*inputs: Any) -> Tensor:
        return added(pgd_class_loss(*inputs))

    return Pair(partial(call, ours), partial(call, plain_pgd))


def added(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*parts.values()]).sum()


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = {
    'bckd': (
        lambda s, t, targets: added(
            bckd_loss(s, t, targets, boxes_of(targets), positive_levels_only=False)
        ),
        plain_bckd,
        2,
    ),
    'adl': (adl_loss, plain_adl, 1),
    'crosskd': (
        lambda s, t, targets: added(
            crosskd_loss(s, t, targets, boxes_of(targets), boxes='distributions')
        ),
        plain_crosskd,
        2,
    ),
}


def make_loss(name: str, device: str, small: bool) -> Pair:
    outputs: Outputs
    outputs, targets = make_head(device, small)
    student, teacher = outputs
    ours, plain, kinds = LOSSES[name]
    inputs = student[: kinds * len(targets.priors)]
    for maps in inputs:
        maps.requires_grad_()

    def call(function: Callable[..., Tensor]) -> list[Tensor]:
        value = function(student, teacher, targets)
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    return Pair(partial(call, ours), partial(call, plain))


def cases() -> list[Case]:
    """Rows of the benchmark."""
    sizes = 'GFL head of 80 classes, 2 images of 800x1344, 5 levels'
    return [
        Case('predictions-bckd', f'BCKD, {sizes}', partial(make_loss, 'bckd')),
        Case('predictions-crosskd', f'CrossKD, {sizes}', partial(make_loss, 'crosskd')),
        Case(
            'predictions-pgd',
            'PGD, class tower of 256 channels, 2 images of 800x1344, 5 levels, 20 boxes each',
            make_pgd,
        ),
        Case('predictions-adl', f'ADL, {sizes}', partial(make_loss, 'adl')),
    ]
