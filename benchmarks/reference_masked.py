"""Masked imitation as published code goes about it, to be measured against.

A loop over images and objects paints each mask; masks are repeated over all channels; anchors are
compared with the objects of one image at a time, and looked up by their indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Pair, forward_backward
from benchmarks.reference_fgd import LEVELS, PIXELS, make_boxes
from kd_dense.losses import DeFeatLoss, FGFILoss, FRSLoss
from kd_dense.losses.features.masked import Anchors

__all__ = ['cases', 'plain_anchor_mask', 'plain_defeat', 'plain_fgfi', 'plain_frs']

STRIDES = (8, 16, 32, 64, 128)


def plain_frs(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
) -> Tensor:
    """What ``kd_dense.losses.FRSLoss`` gives, its parts together."""
    total = student[0].new_zeros(())
    for s, t, x, y in zip(student, teacher, ours, theirs, strict=True):
        mask = y.sigmoid().max(dim=1, keepdim=True)[0]
        norm = mask.sum()
        p, q = x.sigmoid(), y.sigmoid()
        entropy = -(q * p.log().clamp(min=-100) + (1 - q) * (1 - p).log().clamp(min=-100))
        total = total + 0.002 * (((s - t) ** 2) * mask).sum() / norm
        total = total + 0.1 * (entropy * mask).sum() / norm
    return total


def plain_level(box: Sequence[float], levels: int) -> int:
    side = math.sqrt((box[2] - box[0] + 1) * (box[3] - box[1] + 1))
    return min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), levels - 1)


def plain_defeat(
    student: Sequence[Tensor], teacher: Sequence[Tensor], boxes: Sequence[Tensor]
) -> Tensor:
    """What ``kd_dense.losses.DeFeatLoss`` gives, its parts together."""
    levels = len(student)
    total = student[0].new_zeros(())
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        height, width = s.shape[2:]
        mask = s.new_zeros(len(s), height, width)
        for image, objects in enumerate(boxes):
            for box in objects.tolist():
                if plain_level(box, levels) != level:
                    continue
                left, top, right, bottom = (int(side / STRIDES[level]) for side in box)
                if left == right or top == bottom:
                    mask[image, min(top, height - 1), min(left, width - 1)] = 1
                mask[image, top:bottom, left:right] = 1
        mask = mask[:, None].repeat(1, s.shape[1], 1, 1)
        for weight, where in ((4, mask), (16, 1 - mask)):
            squares = ((s - t) ** 2 * where).sum()
            total = total + weight * squares / max(1.0, 2 * float(where.sum())) / levels
    return total


def plain_anchor_mask(
    boxes: Sequence[Tensor], anchors: Tensor, size: tuple[int, int], level: int, levels: int
) -> Tensor:
    masks = []
    for objects in boxes:
        here = torch.zeros(len(anchors), device=anchors.device)
        for box in objects:
            if plain_level(box.tolist(), levels) != level:
                continue
            low, high = torch.max(anchors[:, :2], box[:2]), torch.min(anchors[:, 2:], box[2:])
            shared = (high - low + 1).clamp(min=0).prod(1)
            area, others = (x[..., 2:] - x[..., :2] + 1 for x in (box, anchors))
            iou = shared / (area.prod() + others.prod(1) - shared)
            here[(iou > 0.5 * iou.max()).nonzero()] = 1
        masks.append(here.view(*size, -1).max(2)[0])
    return torch.stack(masks)[:, None]


def plain_fgfi(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Sequence[Tensor],
    anchors: Anchors,
) -> Tensor:
    """What ``kd_dense.losses.FGFILoss`` gives."""
    total = student[0].new_zeros(())
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        size = (s.shape[2], s.shape[3])
        mask = plain_anchor_mask(boxes, anchors.at(level, size), size, level, len(student))
        mask = mask.to(s.dtype)
        norm = max(1.0, 2 * float(mask.sum()))
        total = total + 0.01 * ((t - s) ** 2 * mask).sum() / norm
    return total


def make_pair(name: str, device: str, small: bool) -> Pair:
    images, channels, classes, count = (2, 4, 3, 3) if small else (2, 256, 9 * 80, 8)
    pixels, levels = ((40, 48), ((5, 6), (3, 3))) if small else (PIXELS, LEVELS)
    dtype = torch.float64 if small else torch.float32
    generator = torch.Generator().manual_seed(0)

    def maps(width: int) -> list[Tensor]:
        sizes = [(images, width, *size) for size in levels]
        return [torch.randn(s, generator=generator, dtype=dtype).to(device) for s in sizes]

    student, teacher = [x.requires_grad_() for x in maps(channels)], maps(channels)
    boxes = make_boxes(images, count, pixels, device, dtype)
    if name == 'frs':
        ours, theirs = [x.requires_grad_() for x in maps(classes)], maps(classes)
        loss = FRSLoss()
        return Pair(
            forward_backward(
                lambda: torch.stack([*loss(student, teacher, (ours, theirs)).values()]).sum(),
                [*student, *ours],
            ),
            forward_backward(lambda: plain_frs(student, teacher, ours, theirs), [*student, *ours]),
        )
    if name == 'defeat':
        defeat = DeFeatLoss()
        return Pair(
            forward_backward(
                lambda: torch.stack([*defeat(student, teacher, boxes, pixels).values()]).sum(),
                student,
            ),
            forward_backward(lambda: plain_defeat(student, teacher, boxes), student),
        )
    anchors = make_anchors(len(levels), device, dtype)
    fgfi = FGFILoss()
    return Pair(
        forward_backward(lambda: fgfi(student, teacher, boxes, anchors), student),
        forward_backward(lambda: plain_fgfi(student, teacher, boxes, anchors), student),
    )


def make_anchors(levels: int, device: str, dtype: torch.dtype) -> Anchors:
    """The nine at each position of RetinaNet."""
    base = []
    for stride in STRIDES[:levels]:
        scales = [4 * stride * 2 ** (octave / 3) for octave in range(3)]
        sides = [(a * r**0.5, a / r**0.5) for a in scales for r in (0.5, 1.0, 2.0)]
        half = torch.tensor(sides, dtype=dtype) / 2
        base.append(torch.cat([-half, half], 1).to(device))
    return Anchors(base, [(float(s), float(s)) for s in STRIDES[:levels]])


def cases() -> list[Case]:
    """Rows of the benchmark."""
    where = 'P3 to P7 of 800x1216, 256 channels, 2 images'
    return [
        Case('masked-frs', f'FRS, {where}, 720 class maps', partial(make_pair, 'frs')),
        Case('masked-defeat', f'DeFeat, {where} of 8 boxes', partial(make_pair, 'defeat')),
        Case('masked-fgfi', f'FGFI, {where} of 8 boxes, 9 anchors', partial(make_pair, 'fgfi')),
    ]
