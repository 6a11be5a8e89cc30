"""Pairs of queries as their equations read, to be measured against.

It imitates how detectors go about it: the queries of each layer and image are paired for
themselves, with a wait for the device each time, and the losses of a layer are taken with the
pairs by index.
"""

from __future__ import annotations

from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import (
    TaughtQueries,
    query_box_loss,
    query_feature_loss,
    query_mask_loss,
    query_point_loss,
)

__all__ = ['cases', 'plain_box_loss', 'plain_feature_loss', 'plain_mask_loss', 'plain_point_loss']


def plain_corners(boxes: Tensor) -> Tensor:
    x, y, w, h = boxes.unbind(-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def plain_giou(a: Tensor, b: Tensor) -> Tensor:
    a, b = plain_corners(a), plain_corners(b)
    areas = [(x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b)]
    size = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
    common = size.clamp(min=0).prod(-1)
    union = areas[0] + areas[1] - common
    hull = (torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).prod(-1)
    return common / union - (hull - union) / hull


def plain_box_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """What the parts of ``kd_dense.losses.query_box_loss`` add up to."""
    total: Tensor | float = 0.0
    for x, boxes, logits, their_boxes in zip(*student, *teacher, strict=True):
        pairs = 0
        layer: Tensor | float = 0.0
        for n in range(len(x)):
            p = logits[n].sigmoid()
            corners = plain_corners(their_boxes[n]).clamp(0, 1)
            taught = torch.cat(
                [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], -1
            )
            with torch.no_grad():
                cost = (
                    F.binary_cross_entropy_with_logits(
                        x[n, :, None].expand(-1, len(p), -1),
                        p[None].expand(len(x[n]), -1, -1),
                        reduction='none',
                    ).sum(-1)
                    + 5 * (boxes[n, :, None] - taught[None]).abs().sum(-1)
                    - 2 * plain_giou(boxes[n, :, None], taught[None])
                )
                rows, columns = map(torch.as_tensor, linear_sum_assignment(cost.cpu()))
            ours, theirs = boxes[n, rows], taught[columns]
            apart = F.binary_cross_entropy_with_logits(x[n, rows], p[columns], reduction='sum')
            layer = layer + apart + 5 * (ours - theirs).abs().sum()
            layer = layer + 2 * (1 - plain_giou(ours, theirs)).sum()
            pairs += len(rows)
        total = total + layer / (pairs + torch.finfo(torch.float32).eps)
    return torch.as_tensor(total)


def make_boxes(queries: int, device: str, small: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    layers, images, classes = (2, 2, 3) if small else (6, 2, 80)
    size = (2, layers, images, 5 if small else queries)
    dtype = torch.float64 if small else torch.float32
    logits = torch.randn(*size, classes, generator=generator, dtype=dtype).to(device)
    boxes = torch.rand(*size, 4, generator=generator, dtype=dtype).to(device)
    student = logits[0].clone().requires_grad_(), boxes[0].clone().requires_grad_()
    teacher = logits[1], boxes[1]

    def call() -> Tensor:
        ours, theirs = ([layer for x in side for layer in x] for side in (student, teacher))
        return torch.stack([*query_box_loss(ours, theirs).values()]).sum()

    return Pair(
        forward_backward(call, [*student]),
        forward_backward(lambda: plain_box_loss(student, teacher), [*student]),
    )


def plain_feature_loss(student: Tensor, teacher: Tensor, taught: TaughtQueries) -> Tensor:
    """What ``kd_dense.losses.query_feature_loss`` gives."""
    total: Tensor | float = 0.0
    for states, quality in zip(*taught, strict=True):
        unit, keys = F.normalize(teacher, dim=1), F.normalize(states, dim=-1)
        maps = torch.einsum('nmc,nchw->nmhw', keys, unit) * quality[..., None, None]
        mask = maps.sum(1, keepdim=True).clamp(min=0.01)
        mask = mask / mask.amax((1, 2, 3), keepdim=True)
        total = total + F.mse_loss(mask * student, mask * teacher)
    return torch.as_tensor(total)


def make_features(device: str, small: bool) -> Pair:
    student, teacher = make_maps((2, 256, 100, 168), device, small)
    generator = torch.Generator().manual_seed(1)
    layers, queries = (2, 5) if small else (6, 100)
    size = (layers, len(student), queries)
    states = torch.randn(*size, student.shape[1], generator=generator).to(teacher)
    quality = torch.rand(*size, generator=generator).to(teacher)
    taught = TaughtQueries([*states], [*quality])
    return Pair(
        forward_backward(lambda: query_feature_loss(student, teacher, taught), [student]),
        forward_backward(lambda: plain_feature_loss(student, teacher, taught), [student]),
    )


def plain_mask_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """What the parts of ``query_mask_loss(points=None)`` add up to."""
    total: Tensor | float = 0.0
    for x, masks, logits, their_masks in zip(*student, *teacher, strict=True):
        layer: Tensor | float = 0.0
        for n in range(len(x)):
            log_q, p = x[n].log_softmax(1), logits[n].softmax(1)
            z, m = masks[n].flatten(1), their_masks[n].flatten(1).sigmoid()
            with torch.no_grad():
                s = z.sigmoid()
                inside = F.binary_cross_entropy_with_logits(
                    z, torch.ones_like(z), reduction='none'
                )
                outside = F.binary_cross_entropy_with_logits(
                    z, torch.zeros_like(z), reduction='none'
                )
                apart = (inside @ m.T + outside @ (1 - m).T) / z.shape[1]
                sizes = s.sum(1)[:, None] + m.sum(1)[None]
                cost = -2 * log_q @ p.T + 5 * apart - 5 * (2 * s @ m.T + 1) / (sizes + 1)
                rows, columns = map(torch.as_tensor, linear_sum_assignment(cost.cpu()))
            z, m = z[rows], m[columns]
            s = z.sigmoid()
            dice = 1 - (2 * (s * m).sum(1) + 1) / (s.sum(1) + m.sum(1) + 1)
            apart = F.binary_cross_entropy_with_logits(z, m, reduction='none').mean(1)
            classes = -(p[columns] * log_q[rows]).sum(1)
            layer = layer + 2 * classes.sum() + 5 * apart.sum() + 5 * dice.sum()
        total = total + layer / (x.shape[0] * x.shape[1] + torch.finfo(torch.float32).eps)
    return torch.as_tensor(total)


def make_masks(device: str, small: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    size = (2, 2, 2, 5) if small else (2, 10, 2, 100)
    dtype = torch.float64 if small else torch.float32
    shape = (4, 6) if small else (112, 112)
    logits = torch.randn(*size, 4 if small else 134, generator=generator, dtype=dtype).to(device)
    masks = torch.randn(*size, *shape, generator=generator, dtype=dtype).to(device)
    student = logits[0].clone().requires_grad_(), masks[0].clone().requires_grad_()
    teacher = logits[1], masks[1]

    def call() -> Tensor:
        ours, theirs = ([layer for x in side for layer in x] for side in (student, teacher))
        return torch.stack([*query_mask_loss(ours, theirs, points=None).values()]).sum()

    return Pair(
        forward_backward(call, [*student]),
        forward_backward(lambda: plain_mask_loss(student, teacher), [*student]),
    )


def plain_point_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """What the parts of ``query_point_loss(published_batch=None)`` add up to."""
    logits, boxes = (x[-1] for x in teacher)
    weight = logits.sigmoid().max(-1)[0]
    total: Tensor | float = 0.0
    for x, found in zip(*student, strict=True):
        kl = F.kl_div((x / 10).log_softmax(-1), (logits / 10).softmax(-1), reduction='none')
        total = total + (100 * kl.mean(-1) * weight).sum()
        l1 = F.l1_loss(found, boxes, reduction='none').mean(-1)
        a, b = plain_corners(found), plain_corners(boxes)
        areas = [(y[..., 2] - y[..., 0]) * (y[..., 3] - y[..., 1]) for y in (a, b)]
        size = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
        common = size.clamp(min=0).prod(-1)
        union = areas[0] + areas[1] - common
        hull = (torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).prod(-1)
        giou = common / (union + 1e-6) - (hull - union) / (hull + 1e-6)
        total = total + ((5 * l1 + 2 * (1 - giou)) * weight).sum() / weight.sum()
    return torch.as_tensor(total)


def make_points(device: str, small: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    layers, queries, classes = (2, 5, 3) if small else (6, 300, 80)
    dtype = torch.float64 if small else torch.float32
    size = (2, layers, 2, queries)
    logits = torch.randn(*size, classes, generator=generator, dtype=dtype).to(device)
    boxes = torch.rand(*size, 4, generator=generator, dtype=dtype).to(device)
    student = logits[0].clone().requires_grad_(), boxes[0].clone().requires_grad_()
    teacher = logits[1], boxes[1]

    def call() -> Tensor:
        ours, theirs = ([layer for x in side for layer in x] for side in (student, teacher))
        return torch.stack([*query_point_loss(ours, theirs, published_batch=None).values()]).sum()

    return Pair(
        forward_backward(call, [*student]),
        forward_backward(lambda: plain_point_loss(student, teacher), [*student]),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    what = 'pairs of {} queries, classes and boxes, 6 layers, 2 images, 80 classes'
    masks = 'pairs of 100 queries, classes and masks of 112x112, 10 layers, 2 images'
    points = '300 points, classes and boxes, 6 layers, 2 images, 80 classes'
    looks = 'features weighed by 100 queries of 6 layers, 2 images, 256x100x168'
    return [
        *(Case(f'queries-{n}', what.format(n), partial(make_boxes, n)) for n in (300, 900)),
        Case('queries-masks', masks, make_masks),
        Case('queries-points', points, make_points),
        Case('queries-features', looks, make_features),
    ]
