"""Mimicry as its equations read, to be measured against.

It imitates how published code goes about it: for PKD and VkD the channels are moved to the front
or to the end and flattened into a copy, from which mean and standard deviation are taken and
which is normalised in a few steps, all of them kept by autograd; for the cosine both maps are
divided by their norms first, and their cosine is taken then; the pooled maps of ReviewKD are made
of student and teacher each; and FBKD makes the matrix of all pairs of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import CosineLoss, FitNetsLoss, PKDLoss, VkDLoss, fbkd_loss
from kd_dense.losses.features.mimic.fbkd import Connectors, Relation

__all__ = ['cases', 'plain_context', 'plain_cosine', 'plain_fbkd', 'plain_pkd', 'plain_vkd']


def plain_pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.PKDLoss`` gives."""

    def normed(x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        rows = x.permute(1, 0, 2, 3).reshape(channels, -1)
        rows = (rows - rows.mean(dim=-1, keepdim=True)) / (rows.std(dim=-1, keepdim=True) + 1e-6)
        return rows.reshape(channels, images, height, width).permute(1, 0, 2, 3)

    return F.mse_loss(normed(student), normed(teacher)) / 2


def plain_vkd(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.VkDLoss`` gives."""

    def normed(x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        return (rows - rows.mean(dim=0, keepdim=True)) / rows.std(dim=0, keepdim=True)

    return F.smooth_l1_loss(normed(student), normed(teacher))


def plain_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.CosineLoss`` gives."""
    ours, theirs = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    return (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()


def plain_context(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.FitNetsLoss(pooled=(4, 2, 1))`` gives."""
    total, weight, factor = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= student.shape[2]:
            continue
        ours, theirs = (F.adaptive_avg_pool2d(x, (side, side)) for x in (student, teacher))
        factor /= 2
        total, weight = total + F.mse_loss(ours, theirs) * factor, weight + factor
    return total / weight


def plain_relation(x: Tensor, block: Relation) -> Tensor:
    images, _, height, width = x.shape
    queries = block.theta(x).flatten(2).permute(0, 2, 1)
    keys, values = (F.max_pool2d(conv(x), block.pool).flatten(2) for conv in (block.phi, block.g))
    pairs = torch.matmul(queries, keys)
    pairs = pairs / pairs.shape[-1]
    mixed = torch.matmul(pairs, values.permute(0, 2, 1)).permute(0, 2, 1)
    mixed = block.out(mixed.reshape(images, -1, height, width))
    return x + F.batch_norm(mixed, None, None, block.scale, block.shift, training=True)


def plain_fbkd(student: Tensor, teacher: Tensor, connectors: Connectors) -> dict[str, Tensor]:
    """What ``kd_dense.losses.fbkd_loss`` gives for ``published_batch=None``."""

    def attention(x: Tensor) -> Tensor:
        images, _, height, width = x.shape
        strength = x.abs().mean(1, keepdim=True).view(images, -1)
        return (F.softmax(strength / 0.5, 1) * height * width).view(images, 1, height, width)

    focus = ((attention(teacher) + attention(student)) / 2).detach()
    ours = connectors.relation(plain_relation(student, connectors.student_relation))
    return {
        'masked': torch.sum((teacher - connectors.features(student)) ** 2 * focus) ** 0.5,
        'channel': torch.dist(teacher.mean((2, 3)), connectors.channel(student.mean((2, 3)))),
        'spatial': torch.dist(
            teacher.mean(1, keepdim=True), connectors.spatial(student.mean(1, keepdim=True))
        ),
        'relation': torch.dist(plain_relation(teacher, connectors.teacher_relation), ours),
    }


Loss = Callable[[Tensor, Tensor], Tensor]
# Ours, and the reference.
PAIRS: dict[str, tuple[Loss, Loss]] = {
    'pkd': (PKDLoss(), plain_pkd),
    'vkd': (VkDLoss(), plain_vkd),
    'cosine': (CosineLoss(), plain_cosine),
    'hcl': (FitNetsLoss(pooled=(4, 2, 1)), plain_context),
}


def make_pair(name: str, shape: tuple[int, ...], device: str, small: bool) -> Pair:
    maps = make_maps(shape, device, small)
    ours, reference = (forward_backward(partial(loss, *maps), maps[:1]) for loss in PAIRS[name])
    return Pair(ours, reference)


def make_fbkd(shape: tuple[int, ...], device: str, small: bool) -> Pair:
    torch.manual_seed(0)
    student, teacher = make_maps(shape, device, small, (2, 4, 8, 8))
    connectors = Connectors(student.shape[1], 2, 4).to(device, student.dtype)
    parameters = [*connectors.parameters()]
    for parameter in parameters:  # also where they start as zeros
        torch.nn.init.normal_(parameter, std=0.1)

    def total(parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([*parts.values()]).sum()

    inputs = [student, *parameters]
    return Pair(
        forward_backward(
            lambda: total(fbkd_loss(student, teacher, connectors, published_batch=None)), inputs
        ),
        forward_backward(lambda: total(plain_fbkd(student, teacher, connectors)), inputs),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    shape, tokens = (2, 256, 100, 152), (2, 768, 32, 32)
    return [
        Case(
            'mimic-pkd',
            'PKD, features 2x256x100x152',
            partial(make_pair, 'pkd', shape),
            goal_speed=1.5,
            goal_memory=0.6,
        ),
        Case(
            'mimic-vkd',
            'VkD, features 2x256x100x152',
            partial(make_pair, 'vkd', shape),
            goal_speed=2.0,
            goal_memory=0.6,
        ),
        Case(
            'mimic-cosine',
            'cosine, features 2x768x32x32',
            partial(make_pair, 'cosine', tokens),
            goal_speed=2.0,
            goal_memory=0.9,
        ),
        Case('mimic-hcl', 'HCL, features 2x256x100x152', partial(make_pair, 'hcl', shape)),
        Case(
            'mimic-fbkd',
            'FBKD, features 2x256x50x76',
            partial(make_fbkd, (2, 256, 50, 76)),
            goal_speed=1.1,
        ),
    ]
