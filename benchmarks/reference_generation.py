"""Generation as its equations read, to be measured against.

It imitates how published code goes about it: of MGD there is little to do otherwise; in Af-DCD the
distances of all tokens of all windows are one tensor, out of which boolean masks pick positives
and negatives, which are joined again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import af_dcd_loss, mgd_loss
from kd_dense.losses.features.generation.mgd import Generator, draw_mask

__all__ = ['cases', 'plain_contrast', 'plain_mgd']

RATIO, GROUPS, POOL, WINDOW, TEMPERATURE = 0.75, 16, 4, 4, 0.07


def plain_mgd(student: Tensor, teacher: Tensor, generator: Generator, mask: Tensor) -> Tensor:
    """What ``kd_dense.losses.mgd_loss`` gives."""
    generated = generator(torch.mul(student, mask))
    return F.mse_loss(generated, teacher, reduction='sum') / len(teacher)


def plain_contrast(student: Tensor, teacher: Tensor, groups: int) -> Tensor:
    """What ``contrast`` of ``generation/af_dcd.py`` gives where all sides divide."""
    student, teacher = (F.max_pool2d(x, POOL) for x in (student, teacher))
    images, channels, height, width = student.shape
    positions = WINDOW * WINDOW

    def tokens(x: Tensor) -> Tensor:
        x = x.view(images, channels, height // WINDOW, WINDOW, width // WINDOW, WINDOW)
        x = torch.stack(x.permute(0, 2, 4, 1, 3, 5).split(channels // groups, dim=3), dim=3)
        x = x.reshape(images, -1, groups, channels // groups, positions)
        return x.permute(0, 1, 4, 2, 3).reshape(-1, positions * groups, channels // groups)

    similarity = -torch.cdist(tokens(student), tokens(teacher), p=1)
    same = torch.eye(positions * groups, dtype=torch.bool).to(student.device)
    group = torch.cat([torch.arange(groups) for _ in range(positions)]).to(student.device)
    others = group[:, None] != group
    rows = images * height * width * groups
    positive = similarity[same.repeat(len(similarity), 1, 1)].view(rows, -1)
    negative = similarity[others.repeat(len(similarity), 1, 1)].view(rows, -1)
    logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
    target = torch.zeros(rows, dtype=torch.long).to(student.device)
    return F.cross_entropy(logits, target, reduction='sum') / (height * width) / images


Loss = Callable[[Tensor, Tensor, Generator, Tensor], Tensor]


def ours_af_dcd(student: Tensor, teacher: Tensor, generator: Generator, mask: Tensor) -> Tensor:
    groups = min(GROUPS, student.shape[1] // 2)
    parts = af_dcd_loss(
        student, teacher, generator, mask, TEMPERATURE, groups, POOL, (WINDOW, WINDOW)
    )
    return 2e-6 * parts['features'] + 5e-3 * parts['contrast']


def plain_af_dcd(student: Tensor, teacher: Tensor, generator: Generator, mask: Tensor) -> Tensor:
    groups = min(GROUPS, student.shape[1] // 2)
    generated = generator(torch.mul(student, mask))
    features = F.mse_loss(generated, teacher, reduction='sum') / len(teacher)
    return 2e-6 * features + 5e-3 * plain_contrast(generated, teacher, groups)


def make(
    ours: Loss, reference: Loss, shape: tuple[int, ...], deep: bool = False
) -> Callable[[str, bool], Pair]:
    """Ours and the reference, with one generator and one mask for both."""

    def pair(device: str, small: bool) -> Pair:
        torch.manual_seed(0)
        student, teacher = make_maps(shape, device, small, (2, 4, 16, 16))
        generator = Generator(student.shape[1], deep).to(device, student.dtype)
        mask = draw_mask(student, RATIO)
        inputs = [student, *generator.parameters()]
        first, second = (
            forward_backward(partial(loss, student, teacher, generator, mask), inputs)
            for loss in (ours, reference)
        )
        return Pair(first, second)

    return pair


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case(
            'generation-mgd',
            'MGD, features 2x256x50x76',
            make(mgd_loss, plain_mgd, (2, 256, 50, 76)),
        ),
        Case(
            'generation-af-dcd',
            'Af-DCD, features 2x256x32x64, 16 groups',
            make(ours_af_dcd, plain_af_dcd, (2, 256, 32, 64)),
            goal_memory=0.6,
        ),
    ]
