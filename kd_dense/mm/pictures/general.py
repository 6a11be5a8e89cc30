"""What can be drawn of any loss: a map of each model, and their difference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import HolisticLoss
from kd_dense.mm.loss_maps import mean_activation
from kd_dense.mm.observe import Compared, View
from kd_dense.mm.pictures.canvas import begin, begin_row, frame, level_name, outline, paint, panel

__all__ = ['draw_activations', 'draw_maps']


def draw_activations(view: View, compared: Compared) -> Any:
    """Draw the mean activation of both, and their difference.

    Args:
        view: The picture.
        compared: What a term compares there.
    """
    loss = compared.loss(0)
    flat = [x for x in compared.student if x.dim() != 4]
    if flat:
        figure = begin(1.0, type(loss).__name__, f'compares tensors {tuple(flat[0].shape)}')
        figure.text(0.5, 0.3, 'not a map (N, C, H, W): nothing to draw', ha='center')
        return figure
    text = f'{type(loss).__name__} compares these maps. Shown is the mean over their channels.'
    if isinstance(loss, HolisticLoss):
        scores = []
        for x in (compared.teacher[0], compared.student[0]):
            with torch.no_grad():
                scores.append(float(copy.deepcopy(loss.critic).eval()(x)))
        text += f' Score of the critic: teacher {scores[0]:.3g}, student {scores[1]:.3g}.'
    rows = [mean_activation(compared, level) for level in range(len(compared.student))]
    title = 'Where are student and teacher active?'
    return draw_maps(view, compared.teacher, rows, title, text, 'mean activation')


def draw_maps(
    view: View,
    maps: Sequence[Tensor],
    rows: Sequence[tuple[Tensor, Tensor]],
    title: str,
    subtitle: str,
    unit: str,
) -> Any:
    """Draw one map of each model on every level, and their difference.

    Args:
        view: The picture.
        maps: What the tap yields, ``(N, C, H, W)`` on each level.
        rows: What is drawn of student and teacher on each level, ``(H, W)`` each.
        title: Of the figure.
        subtitle: Below it.
        unit: Of the values.
    """
    figure = begin(len(rows) * (panel(view, 4) + 0.65) + 0.2, title, subtitle)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for index, (row, (ours, theirs)) in enumerate(zip(axes, rows, strict=True)):
        begin_row(row[0], view, 4, index, level_name(index, len(rows), view, maps[index]))
        low = min(float(x.min()) for x in (ours, theirs))
        high = max(float(x.max()) for x in (ours, theirs))
        for axis, values, who in ((row[1], theirs, 'teacher'), (row[2], ours, 'student')):
            image = paint(axis, view, values, vmin=low, vmax=high)
            outline(axis, view)
            frame(axis, view, '' if index else who)
        if ours.shape == theirs.shape:
            apart = paint(row[3], view, (ours - theirs).abs(), vmin=0, cmap='cividis')
            figure.colorbar(apart, ax=row[3], location='bottom', aspect=14, label='difference')
        outline(row[3], view)
        frame(row[3], view, '' if index else '|student - teacher|')
        figure.colorbar(
            image, ax=[*row[1:3]], location='bottom', shrink=0.7, aspect=20, label=unit
        )
    return figure
