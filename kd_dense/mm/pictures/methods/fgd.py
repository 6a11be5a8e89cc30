"""FGD: masks and attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_dense.losses import FGDLoss
from kd_dense.losses.fgd import attentions, box_masks, mean_activations
from kd_dense.mm.pictures.canvas import (
    NOTHING,
    begin,
    cell_size,
    draw_boxes,
    draw_grid,
    draw_truth,
    frame,
    paint,
    panel,
    say_none,
)
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_fgd']


def draw_fgd(view: View, compared: Compared) -> Any:
    """Draw masks, attention, and their product, on each level.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = compared.teacher
    weights = compared.loss(0).weights
    alpha, beta = (1e3 * weights[name] for name in ('foreground', 'background'))
    figure = begin(
        len(levels) * (panel(view, 6) + 0.42) + 0.5,
        'FGD: which differences of the features count, and how much?',
        f'weight of a cell = ({alpha:g} × foreground + {beta:g} × background) × '
        "teacher's attention / 1000; attention to channels comes on top",
    )
    axes = figure.subplots(len(levels), 6, squeeze=False)
    gaps = figure.get_layout_engine()
    gaps.set(h_pad=0.06)
    for index, (row, maps) in enumerate(zip(axes, levels, strict=True)):
        focus = _find_focus(compared, index)
        draw_truth(row[0], view, 6)
        draw_grid(
            row[0],
            view,
            np.linspace(0, view.batch_shape[0], maps.shape[2] + 1),
            np.linspace(0, view.batch_shape[1], maps.shape[3] + 1),
        )
        frame(row[0], view, '' if index else 'picture, boxes,\ncells')
        row[0].title.set_fontsize(8.5)
        label = f'level {index + 1}\n{cell_size(view, maps)}'
        row[0].set_ylabel(label, weight='bold', fontsize=8)
        weight = (alpha * focus.foreground + beta * focus.background) * focus.teacher
        most = float(torch.maximum(focus.teacher, focus.student).max())
        for axis, values, title, high in (
            (row[1], focus.foreground, 'foreground\n1 / cells of the box', None),
            (row[2], focus.background, 'background\n1 / cells off boxes', None),
            (row[3], focus.teacher, "teacher's attention\nmean 1", most),
            (row[4], focus.student, "student's attention\nmean 1", most),
            (row[5], weight, 'weight of a cell\n× 1000', None),
        ):
            cmap = matplotlib.colormaps['viridis'].with_extremes(bad=NOTHING)
            image = paint(
                axis, view, np.ma.masked_equal(values.numpy(), 0), cmap=cmap, vmin=0, vmax=high
            )
            draw_boxes(axis, view, 'white')
            frame(axis, view, '' if index else title)
            axis.title.set_fontsize(8.5)
            if values.any():
                _bar_below(figure, axis, image)
            else:
                say_none(axis)
    return figure


def _bar_below(figure: Any, axis: Any, image: Any) -> None:
    """Put the scale of a picture right below it."""
    below = axis.inset_axes((0.04, -0.13, 0.92, 0.06))
    high = float(image.get_clim()[1])
    long = high < 0.01  # numbers of many digits
    figure.colorbar(
        image,
        cax=below,
        orientation='horizontal',
        ticks=[0, high] if long else MaxNLocator(3, min_n_ticks=2),
        format='%.2g' if long else None,
    )


class Focus(NamedTuple):
    """What weighs the cells of a level in FGD, ``(H, W)`` each."""

    foreground: Tensor
    background: Tensor
    teacher: Tensor
    student: Tensor
    channels: Tensor


def _find_focus(compared: Compared, level: int) -> Focus:
    loss = compared.loss(level)
    s, t = compared.student[level], compared.teacher[level]
    size = (t.shape[2], t.shape[3])
    needs = compared.needs
    shapes = [needs['batch_shape']] if loss.box_scale == 'batch' else needs['image_shapes']
    foreground, background = (m[0] for m in box_masks(needs['boxes'], shapes, size))
    (theirs, channels), (ours, _) = (
        attentions(*mean_activations(x.flatten(2).abs()), loss.temperature) for x in (t, s)
    )
    return Focus(foreground, background, theirs.view(size), ours.view(size), channels[0])


def _shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        loss = compared.loss(level)
        focus = _find_focus(compared, level)
        weights = loss.weights
        mask = weights['foreground'] * focus.foreground + weights['background'] * focus.background
        squares = (focus.channels[:, None, None] * (s[0] - t[0]).square()).sum(0)
        maps.append(loss.weight * mask * focus.teacher * squares)
    return maps


PICTURES: dict[type, Known] = {
    FGDLoss: LossPictures(draw_fgd, _shares, 'the parts foreground and background'),
}
