"""Attention transfer, of which other repositories take the mean over the positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_dense.losses import attention_map_loss

if TYPE_CHECKING:
    from tests.oracle.lane import Case


def replay_attention(case: Case) -> dict[str, Tensor]:
    def loss(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        student = case.tensor('student', dtype).requires_grad_()
        value = attention_map_loss(student, case.tensor('teacher', dtype))
        return value / student[0, 0].numel(), student

    value, student = loss(torch.float64)
    (grad,) = torch.autograd.grad(value, student)
    return {'loss': value, 'grad_student': grad, 'loss_f32': loss(torch.float32)[0]}


REPLAYS = dict.fromkeys(
    [('mmrazor_losses.npz', 'ATLoss'), ('cirkd_baselines.npz', 'CriterionAT')], replay_attention
)
INPUTS = {key: {'student', 'teacher'} for key in REPLAYS}
