"""Prototypes: how near each feature is to the centre of its class, and what the centres see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_dense.functional import NO_LOGIT, labels_at, soft_kl
from kd_dense.losses import APDLoss, IFVDLoss
from kd_dense.losses.features.prototypes.apd import perspectives
from kd_dense.losses.features.prototypes.ifvd import variation
from kd_dense.mm.pictures.general import Known, LossPictures, draw_maps
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_perspectives', 'draw_variation']


def draw_variation(view: View, compared: Compared) -> Any:
    """Draw how near each feature is to the centre of its class.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    return draw_maps(
        view,
        compared.teacher,
        [_variation(compared, level) for level in range(len(compared.student))],
        'IFVD: how near is each feature to its class?',
        'Cosine of the feature at each position and the mean of all features of its class in this '
        'picture; 1 where there is no label.',
        'cosine',
    )


def draw_perspectives(view: View, compared: Compared) -> Any:
    """Draw how likely each feature belongs to its own class, seen from all centres.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    rows = []
    for level in range(len(compared.student)):
        ours, theirs, labels = _seen(compared, level)
        index = labels[:, None]
        ours, theirs = (x.softmax(1).gather(1, index)[0, 0] for x in (ours, theirs))
        rows.append((ours, theirs))
    return draw_maps(
        view,
        compared.teacher,
        rows,
        'APD: which centre is each feature near to?',
        'How probable the own class of each position is, by its likeness to the centres of the '
        'classes of this picture; behind the layers of the loss.',
        'probability',
    )


def _labels(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    loss, size = compared.loss(level), compared.student[level].shape[2:]
    return labels_at(compared.needs['segmentation'], size, loss.num_classes, loss.ignore_index)


def _variation(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    where = *_labels(compared, level), compared.loss(level).num_classes
    ours, theirs = (
        variation(x[level].double(), *where)[0] for x in (compared.student, compared.teacher)
    )
    return ours, theirs


def _variation_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        ours, theirs = _variation(compared, level)
        maps.append(compared.loss(level).weight * (ours - theirs).square() / ours.numel())
    return maps


def _seen(compared: Compared, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Perspective logits ``(1, K, H, W)`` of student and teacher, and the labels."""
    loss, (labels, valid) = compared.loss(level), _labels(compared, level)
    logits = []
    with torch.no_grad():
        for x, layers in (
            (compared.student, loss.student_layers),
            (compared.teacher, loss.teacher_layers),
        ):
            cosines, _, there = perspectives(layers(x[level]), labels, valid, loss.num_classes)
            logits.append(
                (loss.temperature * cosines).masked_fill(~there[:, None, None], NO_LOGIT)
            )
    return logits[0], logits[1], labels


def _perspective_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        ours, theirs, _ = _seen(compared, level)
        apart = soft_kl(ours, theirs, 1.0, 1)[0]
        count = (ours[0, :, 0, 0] > NO_LOGIT / 2).sum().clamp(min=1)
        factor = loss.weight * loss.factors['perspective']
        maps.append(factor * apart / (apart.numel() * count))
    return maps


PICTURES: dict[type, Known] = {
    IFVDLoss: LossPictures(draw_variation, _variation_shares, 'the loss'),
    APDLoss: LossPictures(draw_perspectives, _perspective_shares, 'the part of the perspectives'),
}
