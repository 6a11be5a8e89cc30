"""SKD as its equations read, to be measured against.

Pixel-wise it imitates published code that moves the classes to the end, softens both maps and
keeps every intermediate map for autograd; pair-wise, the pooled nodes of each image are
compared in a matrix of all pairs for student and teacher. The holistic loss has no reference
here: it is the critic itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import HolisticLoss, pair_wise_loss, pixel_wise_loss

__all__ = ['cases', 'plain_pair_wise', 'plain_pixel_wise']


def plain_pixel_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.pixel_wise_loss`` gives for ``published_batch=None``."""
    _, classes, height, width = student.shape
    target = F.softmax(teacher.permute(0, 2, 3, 1).contiguous().view(-1, classes), dim=1)
    log_student = F.log_softmax(student.permute(0, 2, 3, 1).contiguous().view(-1, classes), dim=1)
    return torch.sum(-target * log_student) / width / height


def plain_pair_wise(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """What ``kd_dense.losses.pair_wise_loss`` gives."""
    height, width = student.shape[2:]
    window = max(1, int(height * scale)), max(1, int(width * scale))

    def affinity(x: Tensor) -> Tensor:
        nodes = F.max_pool2d(x, kernel_size=window, stride=window, ceil_mode=True)
        norm = (nodes.pow(2).sum(dim=1).pow(0.5) + 1e-8).unsqueeze(1).detach()
        nodes = (nodes / norm).view(nodes.shape[0], nodes.shape[1], -1)
        return torch.einsum('icm,icn->imn', nodes, nodes)

    ours, theirs = affinity(student), affinity(teacher)
    return ((theirs - ours) ** 2 / ours.shape[1] ** 2 / ours.shape[0]).sum()


def make_pixel_wise(device: str, small: bool) -> Pair:
    student, teacher = make_maps((8, 19, 65, 65), device, small)
    return Pair(
        forward_backward(
            lambda: pixel_wise_loss(student, teacher, published_batch=None), [student]
        ),
        forward_backward(lambda: plain_pixel_wise(student, teacher), [student]),
    )


def make_pair_wise(shape: tuple[int, ...], scale: float, device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    return Pair(
        forward_backward(lambda: pair_wise_loss(student, teacher, scale), [student]),
        forward_backward(lambda: plain_pair_wise(student, teacher, scale), [student]),
    )


def make_holistic(device: str, small: bool) -> Pair:
    torch.manual_seed(0)
    channels, width = (3, 8) if small else (19, 64)
    student, teacher = make_maps((2, channels, 65, 65), device, small, (2, channels, 16, 16))
    loss = HolisticLoss(channels, width=width).to(device, student.dtype)

    def call() -> list[Tensor]:
        value = loss(student, teacher)
        (grad,) = torch.autograd.grad(value, student)
        return [value.detach(), grad, loss.critic_backward()]

    return Pair(call, None)


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case('skd-pixel', 'SKD pixel-wise, logits 8x19x65x65', make_pixel_wise),
        Case(
            'skd-pair',
            'SKD pair-wise, features 8x512x65x65, 3x3 nodes',
            partial(make_pair_wise, (8, 512, 65, 65), 0.5),
        ),
        Case(
            'skd-pair-nodes',
            'SKD pair-wise, features 2x128x64x64, 64x64 nodes',
            partial(make_pair_wise, (2, 128, 64, 64), 1 / 64),
        ),
        Case(
            'skd-holistic',
            "SKD holistic, logits 2x19x65x65, the critic's own step included",
            make_holistic,
        ),
    ]
