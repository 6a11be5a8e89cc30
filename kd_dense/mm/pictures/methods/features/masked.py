"""Masked imitation: the mask on each level, and the differences under it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import DeFeatLoss, FGFILoss, FRSLoss
from kd_dense.losses.features.masked.masks import anchor_masks, score_masks
from kd_dense.mm.pictures.canvas import (
    begin,
    begin_row,
    draw_boxes,
    frame,
    level_name,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_masked']

WHAT = {
    FRSLoss: "the teacher's largest class score at each position",
    DeFeatLoss: 'where objects lie, each on one level; all else is background',
    FGFILoss: 'where anchors overlap an object half as well as its best one',
}


def draw_masked(view: View, compared: Compared) -> Any:
    """Draw the mask, the mean activation of both, and what each position adds, on each level.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = len(compared.student)
    figure = begin(
        levels * (panel(view, 5) + 0.65) + 0.2,
        'Where do the features have to be alike?',
        f'The mask: {WHAT[type(compared.loss(0))]}. Student and teacher: the mean over their '
        'channels; on the right what each position adds to the loss.',
    )
    axes = figure.subplots(levels, 5, squeeze=False)
    rows = zip(axes, _masks(compared), _shares(compared), strict=True)
    for index, (row, mask, share) in enumerate(rows):
        label = level_name(index, levels, view, compared.teacher[index])
        begin_row(row[0], view, 5, index, label)
        theirs, ours = (x[index][0].mean(0) for x in (compared.teacher, compared.student))
        low, high = (float(f(torch.stack([theirs, ours]))) for f in (torch.min, torch.max))
        same = dict(vmin=low, vmax=high)
        limits: list[Any] = [dict(vmin=0, vmax=1), same, same, dict(vmin=0)]
        titles = 'mask', 'teacher', 'student', 'adds to\nthe loss'
        maps = mask[0, 0].double(), theirs, ours, share
        for axis, values, limit, title in zip(row[1:], maps, limits, titles, strict=True):
            image = paint(axis, view, values, **limit)
            figure.colorbar(image, ax=axis, location='bottom', aspect=12, format='%.1g')
            if title == 'mask':
                draw_boxes(axis, view)
            outline(axis, view)
            frame(axis, view, '' if index else title)
    return figure


def _masks(compared: Compared) -> list[Tensor]:
    """The masks ``(1, 1, H, W)`` of the levels."""
    loss, needs, maps = compared.loss(0), compared.needs, compared.student
    if isinstance(loss, DeFeatLoss):
        return loss.masks(maps, needs['boxes'], needs['batch_shape'])
    if isinstance(loss, FGFILoss):
        sizes = [tuple(x.shape[2:]) for x in maps]
        return anchor_masks(needs['boxes'], sizes, needs['anchors'])
    return score_masks(needs[loss.needs[0]][1][: len(maps)])


def _shares(compared: Compared) -> list[Tensor]:
    loss, maps = compared.loss(0), []
    pairs = zip(compared.student, compared.teacher, _masks(compared), strict=True)
    for s, t, mask in pairs:
        squares, mask = (s - t).double().square().sum(1)[0], mask[0, 0].double()
        if isinstance(loss, DeFeatLoss):
            scale = 0.5 * loss.weight / len(s[0]) / len(compared.student)
            sides = (mask, loss.weights['objects']), (1 - mask, loss.weights['background'])
            found = [scale * w * m * squares / m.sum().clamp(min=1) for m, w in sides]
            maps.append(torch.stack(found).sum(0))
        else:
            weight = loss.weights['features'] if isinstance(loss, FRSLoss) else 0.5
            total = mask.sum()
            maps.append(loss.weight * weight * mask * squares / torch.where(total > 0, total, 1))
    return maps


PICTURES: dict[type, Known] = {
    FRSLoss: LossPictures(draw_masked, _shares, 'the part of the features'),
    DeFeatLoss: LossPictures(draw_masked, _shares, 'the loss'),
    FGFILoss: LossPictures(draw_masked, _shares, 'the loss'),
}
