"""Generation: what a mask leaves of the student, and what is made of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor

from kd_dense.losses import AfDCDLoss, MGDLoss
from kd_dense.losses.features.generation.mgd import draw_mask, generate
from kd_dense.mm.pictures.canvas import (
    NOTHING,
    begin,
    begin_row,
    frame,
    level_name,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View
from kd_dense.mm.randomness import kept_random_state

__all__ = ['PICTURES', 'draw_generation']


class _Generated(NamedTuple):
    """Maps ``(C, H, W)`` of a level: of teacher and student, the mask, and what is made."""

    teacher: Tensor
    student: Tensor
    mask: Tensor
    made: Tensor


def _generated(compared: Compared, index: int) -> _Generated:
    """With a mask that is the same whenever this is called."""
    loss, s, t = compared.loss(index), compared.student[index], compared.teacher[index]
    with kept_random_state(), torch.no_grad():
        torch.manual_seed(0)
        mask = draw_mask(s, loss.mask_ratio, getattr(loss, 'mask_over', 'positions'))
        made = generate('picture', s, t, loss.generator, mask)
    return _Generated(t[0], s[0], mask[0].expand_as(s[0]), made[0])


def draw_generation(view: View, compared: Compared) -> Any:
    """Draw the teacher, the student's masked map, and the generated one, on each level.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = len(compared.student)
    figure = begin(
        levels * (panel(view, 5) + 0.65) + 0.2,
        "Can the teacher's features be made of the student's?",
        f'{compared.loss(0).mask_ratio:.0%} of the student are masked, and a small network, which '
        'is trained with it, makes all of the map. Shown: the channel in which the teacher varies '
        'most; on the right the squared difference, of all channels.',
    )
    axes = figure.subplots(levels, 5, squeeze=False)
    cmap = matplotlib.colormaps['viridis'].with_extremes(bad=NOTHING)
    for index, (row, share) in enumerate(zip(axes, _shares(compared), strict=True)):
        found = _generated(compared, index)
        channel = int(found.teacher.float().var((1, 2), correction=0).argmax())
        label = level_name(index, levels, view, compared.teacher[index])
        begin_row(row[0], view, 5, index, f'{label}\nchannel {channel}')
        teacher, student, mask, made = (x[channel] for x in found)
        shown: Any = np.ma.masked_array(student.numpy(), mask.numpy() == 0)
        image = paint(row[2], view, shown, cmap=cmap)
        figure.colorbar(image, ax=row[2], location='bottom', aspect=12)
        low = float(torch.minimum(teacher, made).min())
        high = float(torch.maximum(teacher, made).max())
        for axis, values in ((row[1], teacher), (row[3], made)):
            image = paint(axis, view, values, vmin=low, vmax=high)
            figure.colorbar(image, ax=axis, location='bottom', aspect=12)
        image = paint(row[4], view, share, vmin=0, cmap='cividis')
        figure.colorbar(image, ax=row[4], location='bottom', aspect=12, format='%.1g')
        titles = ('teacher', 'student,\nmasked', 'generated', 'adds to\nthe loss')
        for axis, title in zip(row[1:], titles, strict=True):
            outline(axis, view)
            frame(axis, view, '' if index else title)
    return figure


def _shares(compared: Compared) -> list[Tensor]:
    maps = []
    for index in range(len(compared.student)):
        loss, found = compared.loss(index), _generated(compared, index)
        weight = loss.weight * getattr(loss, 'weights', {}).get('features', 1.0)
        maps.append(weight * (found.made - found.teacher).double().square().sum(0))
    return maps


PICTURES: dict[type, Known] = {
    MGDLoss: LossPictures(draw_generation, _shares, 'the loss, with another mask'),
    AfDCDLoss: LossPictures(
        draw_generation, _shares, 'the part of the features, with another mask'
    ),
}
