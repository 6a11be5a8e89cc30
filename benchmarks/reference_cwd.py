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
from kd_dense.losses import cwd_loss

__all__ = ['cases', 'plain_cwd']


def plain_cwd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What ``kd_dense.losses.cwd_loss`` gives."""
    images, channels, height, width = student.shape
    target = F.softmax(teacher.view(-1, height * width) / temperature, dim=1)
    log_target = F.log_softmax(teacher.view(-1, height * width) / temperature, dim=1)
    log_student = F.log_softmax(student.view(-1, height * width) / temperature, dim=1)
    divergence = torch.sum(target * log_target - target * log_student)
    return divergence * temperature**2 / (images * channels)


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
    return [
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
