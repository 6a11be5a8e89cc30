"""CIRKD's memory as its equations read, to be measured against.

It imitates how published code goes about it: the likenesses of all valid pixels and all vectors of
the memory at once, in student and teacher.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import memory_loss

__all__ = ['cases', 'plain_memory']


def plain_memory(student: Tensor, teacher: Tensor, bank: Tensor, valid: Tensor) -> Tensor:
    """What ``kd_dense.losses.memory_loss`` gives."""

    def logits(x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])[valid.flatten()]
        return torch.mm(rows, bank.T) / 0.1

    ours, theirs = logits(student), logits(teacher)
    return F.kl_div(F.log_softmax(ours, 1), F.softmax(theirs, 1), reduction='batchmean')


def make_pair(shape: tuple[int, ...], count: int, alone: bool, device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    student, teacher = (F.normalize(x.detach(), dim=1) for x in (student, teacher))
    student.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    bank = torch.randn(7 if small else count, student.shape[1], generator=generator)
    bank = F.normalize(bank, dim=1).to(student)
    valid = (torch.rand(student[:, 0].shape, generator=generator) < 0.9).to(device)
    return Pair(
        forward_backward(lambda: memory_loss(student, teacher, bank, valid), [student]),
        None
        if alone
        else forward_backward(lambda: plain_memory(student, teacher, bank, valid), [student]),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case(
            f'memory-{images}x{height}x{width}',
            f'CIRKD, 4104 vectors of a memory, features {images}x256x{height}x{width}',
            # Of eight images the likenesses alone would be 1.1 GB, and several such matrices lie
            # about in a plain one.
            partial(make_pair, (images, 256, height, width), 4104, images == 8),
        )
        for images, height, width in ((2, 32, 64), (1, 64, 128), (8, 64, 128))
    ]
