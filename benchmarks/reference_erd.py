"""ERD as its equations read, image by image, to be measured against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward
from kd_dense.losses import erd_loss
from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from kd_dense.mm.stack.nms import nms

__all__ = ['cases']

SIZES, STRIDES = ((64, 64), (32, 32), (16, 16), (8, 8), (4, 4)), (8, 16, 32, 64, 128)
SMALL = ((6, 8), (3, 4))
BINS, OLD, NEW = 17, 40, 40
EPS = torch.finfo(torch.float32).eps


def _decoder(sizes: Sequence[tuple[int, int]], like: Tensor) -> HeadBoxes:
    priors = []
    for (height, width), stride in zip(sizes, STRIDES, strict=False):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        priors.append(stride * torch.stack([x, y], -1).view(-1, 2).to(like))

    def decode(maps: Sequence[Tensor]) -> Decoded:
        distances = (expected_distances(rows_of_priors(x, 1)) for x in maps)
        both = zip(priors, distances, STRIDES, strict=False)
        return Decoded(priors, [decode_distances(p, stride * x) for p, x, stride in both])

    return HeadBoxes(decode, decode)


def plain_erd(student: Sequence[Tensor], teacher: Sequence[Tensor], boxes: HeadBoxes) -> Tensor:
    """What ``erd_loss`` gives, its parts added up."""
    levels = len(teacher) // 2
    found = torch.cat(boxes.teacher(teacher[levels:]).boxes, 1)
    total = student[0].new_zeros(())
    for image in range(len(found)):
        s, t, s_box, t_box = (
            torch.cat([x[image].flatten(1).T for x in maps])
            for maps in (student[:levels], teacher[:levels], student[levels:], teacher[levels:])
        )
        s = s[:, : t.shape[1]]
        score, label = t.sigmoid().max(1)
        strong = torch.nonzero(score > score.mean() + 2 * score.std()).squeeze(1)
        if len(strong):
            total = total + F.mse_loss(s[strong], t[strong])
        side = t_box.amax(1)
        chosen = torch.nonzero(side > side.mean() + 2 * side.std()).squeeze(1)
        if not len(chosen):
            continue
        apart = (found[image, chosen].max() - found[image].min() + 1) * label[chosen]
        kept = chosen[nms(found[image, chosen] + apart[:, None], score[chosen], 0.005)]
        p, q = (x[kept].view(-1, 4, BINS) / 10 for x in (t_box, s_box))
        kl = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction='none').mean(-1).sum(-1) * 100
        likely = s.detach()[kept].sigmoid().amax(1)
        total = total + 0.25 * (kl * likely).sum() / (4.0 + EPS)
    return total


def make(device: str, small: bool) -> Pair:
    sizes, old, new = (SMALL, 3, 2) if small else (SIZES, OLD, NEW)
    dtype = torch.float64 if small else torch.float32
    generator = torch.Generator().manual_seed(0)

    def maps(classes: int) -> list[Tensor]:
        shapes = [(2, width, *size) for width in (classes, 4 * BINS) for size in sizes]
        return [torch.randn(x, generator=generator, dtype=dtype).to(device) for x in shapes]

    student = [x.requires_grad_() for x in maps(old + new)]
    # With strong responses, however few priors there are.
    teacher = [x.pow(3) if x.shape[1] == 4 * BINS else 2 * x - 4 for x in maps(old)]
    boxes = _decoder(sizes, teacher[0])

    def ours() -> Tensor:
        found = erd_loss(student, teacher, boxes, published_batch=None)
        return torch.stack([*found.values()]).sum()

    return Pair(
        forward_backward(ours, student),
        forward_backward(lambda: plain_erd(student, teacher, boxes), student),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    what = 'ERD, 2 images, 40 old classes and 40 new, 5 levels'
    return [Case('erd', what, make, goal_speed=0.2, goal_memory=3.0)]
