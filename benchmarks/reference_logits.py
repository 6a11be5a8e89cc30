"""The logits family as its equations read, to be measured against.

It imitates published code: classes are moved to the end, and every intermediate matrix of rows and
classes is kept by autograd. The members with labels take them at the size of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import (
    camkd_loss,
    dist_loss,
    dkd_loss,
    gdkd_loss,
    kd_loss,
    nkd_loss,
    unbiased_kd_loss,
    wsld_loss,
)

__all__ = ['cases']

MASK = 1000.0
IGNORED = 255

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _valid(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of all rows, whether they are valid, and how many are."""
    labels = labels.flatten()
    valid = labels != IGNORED
    return labels.masked_fill(~valid, 0), valid, valid.sum()


def plain_kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``kd_loss`` gives with label maps."""
    _, valid, count = _valid(labels)
    target = F.softmax(_rows(teacher), 1)
    kl = F.kl_div(F.log_softmax(_rows(student), 1), target, reduction='none').sum(1)
    return (kl * valid).sum() / count


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    norms: Tensor = x.norm(dim=1) * y.norm(dim=1)
    return (x * y).sum(1) / (norms + 1e-8)


def plain_dist(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``dist_loss`` gives; it takes no labels."""
    p, q = F.softmax(_rows(student), 1), F.softmax(_rows(teacher), 1)
    return (1 - _pearson(p, q).mean()) + (1 - _pearson(p.T, q.T).mean())


def _two(x: Tensor, members: Tensor) -> Tensor:
    return torch.stack([(x * members).sum(1), (x * ~members).sum(1)], 1)


def _parts(s: Tensor, t: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divergences between two groups of classes and within each, of every row."""
    p, q = F.softmax(t, 1), F.softmax(s, 1)
    between = F.kl_div(_two(q, members).log(), _two(p, members), reduction='none').sum(1)
    within = [
        F.kl_div(
            F.log_softmax(s - MASK * others, 1),
            F.log_softmax(t - MASK * others, 1),
            reduction='none',
            log_target=True,
        ).sum(1)
        for others in (~members, members)
    ]
    return between, within[0], within[1]


def plain_dkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``dkd_loss`` gives."""
    labels, valid, count = _valid(labels)
    s, t = _rows(student), _rows(teacher)
    members = torch.zeros_like(t).scatter_(1, labels[:, None], 1).bool()
    between, _, rest = _parts(s, t, members)
    return ((between + 2.0 * rest) * valid).sum() / count


def plain_gdkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``gdkd_loss`` gives without labels."""
    s, t = _rows(student), _rows(teacher)
    index = t.topk(min(3, t.shape[1] - 1), dim=1).indices
    members = torch.zeros_like(t).scatter_(1, index, 1).bool()
    between, top, rest = _parts(s, t, members)
    return (between + top + 2.0 * rest).mean()


def plain_nkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``nkd_loss`` gives."""
    labels, valid, count = _valid(labels)
    s, t = _rows(student), _rows(teacher)
    p, log_q = F.softmax(t, 1), F.log_softmax(s, 1)
    first = p.gather(1, labels[:, None]) * log_q.gather(1, labels[:, None])
    others = torch.ones_like(t).scatter_(1, labels[:, None], 0).bool()
    s, t = (x[others].view(len(x), -1) for x in (s, t))
    second = (F.softmax(t, 1) * F.log_softmax(s, 1)).sum(1)
    return -((first[:, 0] + 1.5 * second) * valid).sum() / count


def plain_wsld(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``wsld_loss`` gives."""
    labels, valid, count = _valid(labels)
    s, t = _rows(student), _rows(teacher)
    one_hot = F.one_hot(labels, s.shape[1]).to(s.dtype)
    cross_entropy = -(F.softmax(t / 2, 1) * F.log_softmax(s / 2, 1)).sum(1)
    ours, theirs = (-(one_hot * F.log_softmax(x.detach(), 1)).sum(1) for x in (s, t))
    weight = 1 - torch.exp(-ours / (theirs + 1e-7))
    return 4 * (weight * cross_entropy * valid).sum() / count


def plain_camkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``camkd_loss`` gives of a teacher, and the same with its classes turned round."""
    labels, valid, count = _valid(labels)
    s, each, known = _rows(student), [], []
    for t in (_rows(teacher), _rows(teacher.flip(1))):
        each.append(
            F.kl_div(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1), reduction='none').sum(1)
        )
        known.append(F.cross_entropy(t, labels, reduction='none'))
    weights = 1 - F.softmax(torch.stack(known), 0)
    return 16 * ((weights * torch.stack(each)).sum(0) * valid).sum() / count


def plain_unbiased(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``unbiased_kd_loss`` gives of the teacher's classes but the last one."""
    teacher = teacher[:, :-1]
    old = teacher.shape[1]
    total = student.logsumexp(1)
    new = torch.tensor([0, *range(old, student.shape[1])], device=student.device)
    background = student.index_select(1, new).logsumexp(1) - total
    known = student[:, 1:old] - total[:, None]
    p = F.softmax(teacher, 1)
    return -((p[:, 0] * background + (p[:, 1:] * known).sum(1)) / old).mean()


class Member(NamedTuple):
    """A loss, the plain one, what they are; how much faster, what share of the memory: goals."""

    ours: Loss
    plain: Loss
    what: str
    speed: float
    memory: float


MEMBERS = {
    'kd': Member(kd_loss, plain_kd, 'KD, valid pixels', 1.2, 0.5),
    'dist': Member(lambda s, t, _: dist_loss(s, t), plain_dist, 'DIST', 1.8, 0.6),
    'dkd': Member(dkd_loss, plain_dkd, 'DKD', 2.0, 0.3),
    'gdkd': Member(lambda s, t, _: gdkd_loss(s, t), plain_gdkd, 'GDKD', 1.4, 0.3),
    'nkd': Member(nkd_loss, plain_nkd, 'NKD', 2.0, 0.7),
    'wsld': Member(wsld_loss, plain_wsld, 'WSLD', 1.3, 0.8),
    'camkd': Member(
        lambda s, t, labels: camkd_loss(s, [t, t.flip(1)], labels),
        plain_camkd,
        'CA-MKD, two teachers',
        1.2,
        0.7,
    ),
    'unbiased': Member(
        lambda s, t, _: unbiased_kd_loss(s, t[:, :-1]),
        plain_unbiased,
        'unbiased KD, one new class',
        0.8,
        1.3,
    ),
}


def make(name: str, shape: tuple[int, ...], device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(student.shape[1], student[:, 0].shape, generator=generator)
    labels[:, 0] = IGNORED
    labels = labels.to(device)
    ours, plain, *_ = MEMBERS[name]
    return Pair(
        forward_backward(lambda: ours(student, teacher, labels), [student]),
        forward_backward(lambda: plain(student, teacher, labels), [student]),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case(
            f'logits-{name}-{height}',
            f'{member.what}, logits 8x19x{height}x{2 * height}',
            partial(make, name, (8, 19, height, 2 * height)),
            goal_speed=member.speed,
            goal_memory=member.memory,
        )
        for name, member in MEMBERS.items()
        for height in (64, 128)
    ]
