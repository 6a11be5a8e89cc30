"""ERD: where the teacher responds strongly to its own classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import ERDLoss
from kd_dense.losses.erd import Rows, erd_rows, rows_of_heads
from kd_dense.mm.pictures.general import Known, LossPictures, by_position, draw_maps
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_erd']


def draw_erd(view: View, compared: Compared) -> Any:
    """Draw how probable the likeliest old class of each position is, in both heads.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    rows = _rows(compared)
    old = rows.student_classes[..., : rows.teacher_classes.shape[-1]]
    pairs = [
        _by_position(100 * x.amax(-1).sigmoid(), compared, torch.amax)
        for x in (old, rows.teacher_classes)
    ]
    return draw_maps(
        view,
        compared.teacher[: len(pairs[0])],
        [*zip(*pairs, strict=True)],
        "ERD: where are the teacher's classes?",
        f'Compared where the teacher is {compared.loss(0).settings["sigmas"]:g} standard '
        'deviations above its mean. Shown is the likeliest of its classes, in both heads.',
        'probability, %',
    )


def _rows(compared: Compared) -> Rows:
    loss = compared.loss(0)
    return rows_of_heads(
        compared.student,
        compared.teacher,
        compared.needs['head_boxes'],
        loss.settings['without_strides'],
    )


def _by_position(rows: Tensor, compared: Compared, reduce: Any) -> list[Tensor]:
    levels = compared.teacher[: len(compared.teacher) // 2]
    positions = [x.shape[-2:].numel() for x in levels]
    anchors = rows.shape[1] // sum(positions)
    return by_position(rows, [anchors * count for count in positions], levels, reduce)


def _shares(compared: Compared) -> list[Tensor]:
    loss = compared.loss(0)
    settings = loss.settings
    names = ('temperature', 'sigmas', 'max_iou', 'candidates')
    found = erd_rows(_rows(compared), **{name: settings[name] for name in names})
    factor = loss.weight * (settings['published_batch'] or 1)
    total = sum(settings[part] * values for part, values in found.items())
    return _by_position(factor * total, compared, torch.sum)


PICTURES: dict[type, Known] = {
    ERDLoss: LossPictures(draw_erd, _shares, 'the loss, both parts together')
}
