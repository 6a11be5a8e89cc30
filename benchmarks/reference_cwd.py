"""CWD as its equation reads, to be measured against, and what limits its time.

It imitates how published code compares softened maps: a division by the temperature, a softmax
and a log-softmax of each map, and a divergence of whole maps, all of them kept by autograd. The
bound is a log-softmax of each of the two softened maps, forward and backward, one after the other:
the least that a loss costs that is put together of PyTorch's operators.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import CWDLoss, KDLoss, cwd_loss

__all__ = ['cases', 'plain_cwd', 'plain_edge_body']

IGNORED = 255
EDGE = 7


def plain_cwd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What ``kd_dense.losses.cwd_loss`` gives."""
    images, channels, height, width = student.shape
    target = F.softmax(teacher.view(-1, height * width) / temperature, dim=1)
    log_target = F.log_softmax(teacher.view(-1, height * width) / temperature, dim=1)
    log_student = F.log_softmax(student.view(-1, height * width) / temperature, dim=1)
    divergence = torch.sum(target * log_target - target * log_student)
    return divergence * temperature**2 / (images * channels)


def plain_edge_body(student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> Tensor:
    """What ``KDLoss`` gives at edges and ``CWDLoss`` in bodies, one shift of the labels a time."""
    known, at_edge = labels != IGNORED, torch.zeros_like(labels, dtype=torch.bool)
    around = F.pad(labels, [EDGE // 2] * 4, value=IGNORED)
    height, width = labels.shape[1:]
    for y in range(EDGE):
        for x in range(EDGE):
            other = around[:, y : y + height, x : x + width]
            at_edge |= (other != labels) & (other != IGNORED)
    edges, bodies = (
        F.adaptive_avg_pool2d((known & part).to(student.dtype), (*student.shape[2:],))
        for part in (at_edge, ~at_edge)
    )
    kl = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction='none').sum(1)
    at_edges = (kl * edges).sum() / edges.sum()
    counts, shares = bodies[:, None] > 0, bodies[:, None].clamp(min=1e-30).log()
    p, q = (
        F.log_softmax(torch.where(counts, x / t + shares, -1e30).flatten(2), 2)
        for x in (teacher, student)
    )
    return at_edges + t**2 * (p.exp() * (p - q)).sum() / (p.shape[0] * p.shape[1])


def make_edge_body(shape: tuple[int, ...], device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    images, classes, height, width = student.shape
    generator = torch.Generator().manual_seed(1)
    objects = torch.randint(classes, (images, height // 2, width // 2), generator=generator)
    labels = objects.repeat_interleave(16, 1).repeat_interleave(16, 2).to(device)
    labels[:, :8] = IGNORED
    edges, bodies = KDLoss(where='edge', edge=EDGE), CWDLoss(1.0, 4.0, where='body', edge=EDGE)

    def ours() -> Tensor:
        total: Tensor = edges(student, teacher, labels) + bodies(student, teacher, labels)
        return total

    return Pair(
        forward_backward(ours, [student]),
        forward_backward(lambda: plain_edge_body(student, teacher, labels, 4.0), [student]),
    )


def make_cwd(shape: tuple[int, ...], temperature: float, device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    return Pair(
        forward_backward(lambda: cwd_loss(student, teacher, temperature), [student]),
        forward_backward(lambda: plain_cwd(student, teacher, temperature), [student]),
    )


def make_bound(shape: tuple[int, ...], temperature: float, device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    upstream = torch.ones_like(student).flatten(2)
    other = teacher.clone().requires_grad_()

    def bound() -> list[Tensor]:
        for maps in (student, other):
            logits = maps.flatten(2)
            if temperature != 1:
                logits = logits / temperature
            torch.autograd.grad(logits.log_softmax(2), maps, upstream)
        return []

    return Pair(
        forward_backward(lambda: cwd_loss(student, teacher, temperature), [student]), bound
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    logits, features = (2, 19, 128, 256), (2, 256, 100, 152)
    what = 'KD at edges and CWD in bodies, logits {}, labels {} of 19 classes'
    return [
        Case(
            'edge-body',
            what.format('8x19x64x128', '512x1024'),
            partial(make_edge_body, (8, 19, 64, 128)),
        ),
        Case(
            'edge-body-large',
            what.format('8x19x128x256', '1024x2048'),
            partial(make_edge_body, (8, 19, 128, 256)),
        ),
        Case('cwd-logits', 'CWD, logits 2x19x128x256, T=4', partial(make_cwd, logits, 4.0)),
        Case('cwd-features', 'CWD, features 2x256x100x152, T=1', partial(make_cwd, features, 1.0)),
        Case(
            'cwd-logits-bound',
            'CWD as above, against log-softmax passes over both softened maps',
            partial(make_bound, logits, 4.0),
            goal_speed=1 / 1.2,
            bound=True,
        ),
        Case(
            'cwd-features-bound',
            'CWD as above, against log-softmax passes over both softened maps',
            partial(make_bound, features, 1.0),
            goal_speed=1 / 1.2,
            bound=True,
        ),
    ]
