"""ReviewKD as its equations read, to be measured against.

It imitates how published code goes about it: batch norms of PyTorch, and pooled maps made of
student and teacher each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward
from benchmarks.reference_fgd import LEVELS
from benchmarks.reference_mimic import plain_context
from kd_dense.losses import ReviewKDLoss

__all__ = ['cases', 'plain_review']


def plain_review(student: Sequence[Tensor], teacher: Sequence[Tensor], fusions: Any) -> Tensor:
    """What ``kd_dense.losses.ReviewKDLoss`` gives."""

    def normed(x: Tensor, conv: Any, norm: Any) -> Tensor:
        return F.batch_norm(conv(x), None, None, norm.weight, norm.bias, training=True)

    total, above = student[0].new_zeros(()), None
    for level in reversed(range(len(student))):
        one = fusions[level]
        x = normed(student[level], one.narrow, one.narrow_norm)
        if above is not None:
            above = F.interpolate(above, x.shape[2:], mode='nearest')
            shares = torch.sigmoid(one.attention(torch.cat([x, above], dim=1)))
            x = x * shares[:, 0].unsqueeze(1) + above * shares[:, 1].unsqueeze(1)
        above = x
        total = total + plain_context(normed(x, one.out, one.out_norm), teacher[level])
    return total


def make_pair(device: str, small: bool) -> Pair:
    torch.manual_seed(0)
    images, channels, width = (2, 4, 3) if small else (2, 256, 256)
    levels = ((5, 6), (3, 3)) if small else LEVELS
    like: Any = dict(dtype=torch.float64 if small else torch.float32, device=device)
    student, teacher = (
        [torch.randn(images, channels, *size, **like) for size in levels] for _ in range(2)
    )
    student = [x.requires_grad_() for x in student]
    widths = [channels] * len(levels)
    loss = ReviewKDLoss(widths, widths, width=width).to(**like)
    inputs = [*student, *loss.parameters()]
    return Pair(
        forward_backward(lambda: loss(student, teacher), inputs),
        forward_backward(lambda: plain_review(student, teacher, loss.fusions), inputs),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    what = 'ReviewKD, P3 to P7 of 800x1216, 256 channels, width 256, 2 images'
    return [Case('review', what, make_pair)]
