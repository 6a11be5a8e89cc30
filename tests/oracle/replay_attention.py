"""Attention: AT, SAD between two stages, and DSD, whose other part relates classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_dense.losses import ATLoss, RelationLoss, SADLoss, attention_change_loss
from tests.oracle.replay_mimic import Loss, Tensors, _levels, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case


def _at(case: Case, tensors: Tensors) -> Tensor:
    return ATLoss()(tensors['student'], tensors['teacher'])


def _sad(case: Case, tensors: Tensors) -> Tensor:
    """Both stages move."""
    return SADLoss(detach=False)(tensors['student'], tensors['student_deep'])


def _dsd(case: Case) -> Tensors:
    """The attention of three layers, and the channels of the last."""

    def parts(tensors: Tensors) -> Tensors:
        pairs = _levels(tensors)
        student, teacher = ([*maps] for maps in zip(*pairs, strict=True))
        channels = RelationLoss(1.0, 'channels', 'none', 'mean', 'places', 4.0, 2)
        return {
            'loss_psd': attention_change_loss(student, teacher),
            'loss_csd': channels(*pairs[-1]),
        }

    def loss(case: Case, tensors: Tensors) -> Tensor:
        return torch.stack([*parts(tensors).values()]).sum()

    recorded = {name: case.tensor(name) for name in case.arrays if is_input(name)}
    return {**replay(case, loss), **parts(recorded)}


LOSSES: dict[tuple[str, str], Loss] = {
    ('attention_transfer.npz', 'at_loss'): _at,
    ('mmrazor_losses.npz', 'ATLoss'): _at,
    ('cirkd_baselines.npz', 'CriterionAT'): _at,
    ('sad.npz', 'ENet_SAD.at_gen'): _sad,
}
REPLAYS = {key: lambda case, loss=loss: replay(case, loss) for key, loss in LOSSES.items()} | {
    ('cirkd_baselines.npz', 'CriterionDoubleSimKD'): _dsd,
}
INPUTS = dict.fromkeys(REPLAYS, is_input)
