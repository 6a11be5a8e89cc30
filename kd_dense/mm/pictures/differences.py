"""Where student and teacher still differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_dense.mm.pictures.canvas import (
    STYLE,
    WIDTH,
    begin,
    begin_row,
    frame,
    mark,
    outline,
    paint,
    panel,
    say_none,
)
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.terms import pictures_of
from kd_dense.mm.pictures.views import Array, View

__all__ = ['Differences', 'differences', 'draw_differences']

SPOTS = 3  # worst places that are marked


class Differences(NamedTuple):
    """Where the loss of a term comes from.

    Attributes:
        value: The weighted loss.
        maps: ``(H, W)`` for each map of the tap: what each position adds to the loss.
        what: What is shown.
    """

    value: float
    maps: list[Tensor]
    what: str


def differences(compared: Compared) -> Differences:
    """Find out what each position adds to the loss of a term.

    Together the positions make the loss, or the parts of it that ``what`` names. Of a loss that
    is not known here, the difference of the mean activations is shown.

    Args:
        compared: What the term compares on a picture.
    """
    pictures = pictures_of(compared)
    return Differences(compared.value, pictures.shares(compared), pictures.what)


@matplotlib.rc_context(STYLE)
def draw_differences(view: View, found: Mapping[str, Differences]) -> Any:
    """Draw where the loss of a term comes from, for each student, and mark the worst places.

    Args:
        view: The picture.
        found: By the name of the student; the one to look at comes last.
    """
    last = [*found.values()][-1]
    first = next(iter(found.values()))
    columns = 1 + len(found)
    count = len(last.maps)
    if not count:
        return begin(0.4, 'Where do student and teacher still differ?', 'not in any map')
    shown = max(columns, 3)
    figure = begin(
        count * (0.94 * panel(view, shown) + 0.15) + 0.5,
        'Where do student and teacher still differ?',
        f'Shown: {last.what}. 1 is the average place'
        + (f' of the {next(iter(found))}' if len(found) > 1 else '')
        + f'. Numbers: the worst {SPOTS} at most.',
        WIDTH * columns / shown,
    )
    axes = figure.subplots(count, columns, squeeze=False)
    for index, row in enumerate(axes):
        scale = float(first.maps[index].mean()) or 1.0
        values = [(d.maps[index] / scale).numpy() for d in found.values()]
        high = max(float(v.max()) for v in values) or 1.0
        begin_row(row[0], view, shown, index, f'level {index + 1}' if count > 1 else '')
        for axis, one, (name, difference) in zip(row[1:], values, found.items(), strict=True):
            image = paint(axis, view, one, vmin=0, vmax=high, cmap='cividis')
            outline(axis, view)
            title = f'{name}\nloss of the term: {difference.value:.3g}'
            frame(axis, view, '' if index else title)
        for number, place in enumerate(_worst(values[-1]), 1):
            for axis in (row[0], row[-1]):
                mark(axis, view, values[-1].shape, *place, str(number))
        if not any(one.any() for one in values):
            say_none(row[-1])
            continue
        figure.colorbar(
            image, ax=[*row], shrink=0.85, aspect=14, pad=0.01, ticks=MaxNLocator(4),
            label='× average',
        )  # fmt: skip
    return figure


def _worst(values: Array) -> list[tuple[int, int]]:
    """The positions of the largest values that are apart from each other, and not small."""
    rest = np.where(values > 0.3 * values.max(), values, 0.0)
    near = max(1, round(0.08 * max(values.shape)))
    found = []
    for _ in range(SPOTS):
        if rest.max() <= 0:
            break
        y, x = (int(v) for v in np.unravel_index(rest.argmax(), rest.shape))
        found.append((y, x))
        rest[max(y - near, 0) : y + near + 1, max(x - near, 0) : x + near + 1] = 0
    return found
