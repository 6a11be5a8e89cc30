"""What can be drawn of any loss: a map of each model, and their difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kd_dense.mm.pictures.canvas import begin, begin_row, frame, level_name, outline, paint, panel
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['LossPictures', 'by_position', 'draw_activations', 'draw_maps']


class LossPictures(NamedTuple):
    """The pictures of a loss.

    Attributes:
        draw: Draws what the loss looks at.
        shares: What each position adds to the loss, ``(H, W)`` for each map of the tap. Together
            the positions make the loss, or the parts of it that ``what`` names.
        what: What these are, in words.
    """

    draw: Callable[[View, Compared], Any]
    shares: Callable[[Compared], list[Tensor]]
    what: str


# The pictures of a loss, or what chooses them by its settings.
Known = LossPictures | Callable[[Compared], LossPictures]


def draw_activations(view: View, compared: Compared, note: str = '') -> Any:
    """Draw the mean activation of both, and their difference.

    Args:
        view: The picture.
        compared: What a term compares there.
        note: What else to say of it.
    """
    loss = compared.loss(0)
    flat = [x for x in compared.student if x.dim() != 4]
    if flat:
        figure = begin(1.0, type(loss).__name__, f'compares tensors {tuple(flat[0].shape)}')
        figure.text(0.5, 0.3, 'not a map (N, C, H, W): nothing to draw', ha='center')
        return figure
    text = f'{type(loss).__name__} compares these maps. Shown is the mean over their channels.'
    rows = [_mean_activation(compared, level) for level in range(len(compared.student))]
    title = 'Where are student and teacher active?'
    return draw_maps(view, compared.teacher, rows, title, text + note, 'mean activation')


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


def _mean_activation(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    """Mean activation of student and teacher, ``(H, W)``."""
    s, t = compared.student[level][0], compared.teacher[level][0]
    return s.mean(0), t.mean(0)


def _activation_shares(compared: Compared) -> list[Tensor]:
    pairs = [_mean_activation(compared, i) for i, x in enumerate(compared.student) if x.dim() == 4]
    return [(ours - theirs).abs() for ours, theirs in pairs if ours.shape == theirs.shape]


# Of a loss that no file of methods/ knows.
ANY = LossPictures(draw_activations, _activation_shares, 'difference of mean activation')


def by_position(
    rows: Tensor,
    sizes: Sequence[int],
    maps: Sequence[Tensor],
    reduce: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:
    """Maps ``(H, W)`` of each level, of values of priors.

    Args:
        rows: Values of all priors of a picture, ``(1, A)``.
        sizes: How many of them each level has.
        maps: What tells height and width of each level, and maybe more.
        reduce: Of the values at a position, in a dimension: as ``torch.sum``.
    """
    return [
        reduce(values[0].view(*x.shape[-2:], -1), 2)
        for values, x in zip(rows.split([*sizes], 1), maps, strict=False)
    ]
