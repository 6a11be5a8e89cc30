"""Memory: the classes of what each pixel is like in a memory, to teacher and student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_dense.functional import labels_at, unit
from kd_dense.losses import MemoryLoss
from kd_dense.losses.features.relations.rows import pooled
from kd_dense.mm.pictures.general import Known, LossPictures, draw_maps
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_memory']


def draw_memory(view: View, compared: Compared) -> Any:
    """Draw how much each pixel is like the regions of its class that are remembered.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    rows = [_of_own_class(compared, level) for level in range(len(compared.student))]
    return draw_maps(
        view,
        compared.teacher,
        rows,
        'Are pixels like the regions of their class in other images?',
        "Shown: the share of the memory's regions of a pixel's own class in what it is like; "
        'pixels without a label have none.',
        'share of the own class',
    )


def _likenesses(compared: Compared, level: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Logarithms ``(P, M)`` of both, student first; the labels ``(H, W)`` and which are valid."""
    loss, needed = compared.loss(level), compared.needs['segmentation']
    student, teacher = (pooled(x[level], loss.pool) for x in (compared.student, compared.teacher))
    labels, valid = labels_at(needed, student.shape[2:], loss.num_classes, loss.ignore_index)
    bank = loss.region_memory.vectors().flatten(0, 1).to(student.dtype)
    with torch.no_grad():
        units = unit(loss.project(student), 1), unit(teacher, 1)
    scale = loss.temperature * loss.kd_temperature
    found = [(x[0].flatten(1).T @ bank.T / scale).log_softmax(1) for x in units]
    return found, labels[0], valid[0]


def _of_own_class(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    found, labels, valid = _likenesses(compared, level)
    classes = compared.loss(level).num_classes
    own, known = labels.flatten()[:, None], valid.flatten()
    shares = [x.exp().unflatten(1, (classes, -1)).sum(2).gather(1, own)[:, 0] for x in found]
    ours, theirs = (torch.where(known, x, 0).view(labels.shape) for x in shares)
    return ours, theirs


def _shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        (ours, theirs), labels, valid = _likenesses(compared, level)
        apart = (theirs.exp() * (theirs - ours)).sum(1).view(labels.shape).double()
        weight = loss.weight * loss.weights['regions'] * loss.kd_temperature**2
        maps.append(weight * apart.clamp(min=0) * valid / valid.sum().clamp(min=1))
    return maps


PICTURES: dict[type, Known] = {
    MemoryLoss: LossPictures(draw_memory, _shares, 'the part of the regions, of all in the memory')
}
