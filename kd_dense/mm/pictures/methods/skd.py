"""SKD: class distributions, affinities of nodes, and scores of the critic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_dense.functional import soft_kl, two_class_logits
from kd_dense.losses import HolisticLoss, PairWiseLoss, PixelWiseLoss
from kd_dense.losses.skd import unit_nodes
from kd_dense.mm.pictures.canvas import (
    MARK,
    STUDENT,
    TEACHER,
    begin,
    draw_grid,
    draw_matrix,
    draw_truth,
    frame,
    mark,
    outline,
    paint,
    paint_image,
    panel,
)
from kd_dense.mm.pictures.general import ANY, Known, LossPictures, draw_activations
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import Array, View

__all__ = ['PICTURES', 'draw_holistic', 'draw_pair_wise', 'draw_pixel_wise']


def draw_pixel_wise(view: View, compared: Compared) -> Any:
    """Draw the class distributions at each position, and at the worst one class by class.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = [_distributions(compared, level) for level in range(len(compared.student))]
    level = max(range(len(levels)), key=lambda i: float(levels[i][2].mean()))
    ours, theirs, kl = levels[level]
    which = f'Level {level + 1} of {len(levels)}, where the loss is largest. '
    row, column = divmod(int(kl.argmax()), kl.shape[1])
    top = theirs.argmax(0, keepdim=True)
    figure = begin(
        panel(view, 4) + 3.0,
        'Which classes does each position get?',
        (which if len(levels) > 1 else '')
        + 'The class distributions of both are compared at every position. Shown: how probable '
        "the teacher's class is.",
    )
    above, below = figure.subfigures(2, 1, height_ratios=(panel(view, 4) + 0.8, 2.2))
    axes = above.subplots(1, 4)
    draw_truth(axes[0], view, 4)
    frame(axes[0], view, 'picture; marked: worst place')
    for axis, shares, name in ((axes[1], theirs, 'teacher'), (axes[2], ours, 'student')):
        values = 100 * shares.gather(0, top)[0]
        sure = paint(axis, view, values, vmin=0, vmax=100)
        outline(axis, view)
        frame(axis, view, name)
    apart = paint(axes[3], view, kl, vmin=0, cmap='cividis')
    frame(axes[3], view, 'KL × T² at each position')
    for axis in (axes[0], axes[3]):
        mark(axis, view, kl.shape, row, column)
    above.colorbar(sure, ax=axes[1:3], location='bottom', shrink=0.7, label='probability, %')
    above.colorbar(apart, ax=axes[3], location='bottom', label='nats', ticks=MaxNLocator(3))
    axis = below.subplots()
    at = torch.stack([theirs[:, row, column], ours[:, row, column]])
    largest = at.amax(0).argsort(descending=True)[:8].sort().values
    known = _class_names(view, compared, len(at[0]))
    names = [known[c] if known else str(c) for c in largest.tolist()]
    for share, shift, color, who in zip(
        100 * at[:, largest], (-0.2, 0.2), (TEACHER, STUDENT), ('teacher', 'student'), strict=True
    ):
        axis.bar(np.arange(len(names)) + shift, share, 0.4, color=color, label=who)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel='probability, %', title='at the marked place: the most probable classes')
    axis.spines[['top', 'right']].set_visible(False)
    below.legend(loc='outside right upper', frameon=False)
    return figure


def draw_pair_wise(view: View, compared: Compared) -> Any:
    """Draw affinities of pooled nodes: of one node over the picture, and of all pairs.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    found = [_find_nodes(view, compared, level) for level in range(len(compared.student))]
    apart = [float(((n.ours - n.theirs) ** 2).mean()) for n in found]
    level = int(np.argmax(apart))
    rows, columns, ours, theirs = found[level]
    squares = (ours - theirs) ** 2
    node = int(squares.sum(1).argmax())
    shape = (len(rows) - 1, len(columns) - 1)
    which = f'Level {level + 1} of {len(found)}, where the loss is largest: m'
    figure = begin(
        panel(view, 3) + 3.9,
        'SKD, pair-wise: how alike are the regions of a picture to each other?',
        f'{which if len(found) > 1 else "M"}ax pooling (scale {compared.loss(0).scale:g}) makes '
        f'the map {shape[0]} × {shape[1]} nodes; the affinity of two nodes is the cosine between '
        'their features.',
    )
    above, below = figure.subfigures(2, 1, height_ratios=(panel(view, 3) + 0.2, 3.7))
    axes = np.array([above.subplots(1, 3), below.subplots(1, 3)])
    low = min(ours.min(), theirs.min())
    paint_image(axes[0, 0], view)
    mesh = np.meshgrid(columns, rows)
    for axis, values in ((axes[0, 1], theirs), (axes[0, 2], ours)):
        axis.pcolormesh(*mesh, values[node].reshape(shape), vmin=low, vmax=1)
    titles = (
        'picture and nodes; marked: {}',
        'teacher: affinity to node {}',
        'student: affinity to node {}',
    )
    row, column = divmod(node, shape[1])
    corner = columns[column], rows[row]
    size = columns[column + 1] - corner[0], rows[row + 1] - corner[1]
    for axis, title in zip(axes[0], titles, strict=True):
        draw_grid(axis, view, rows, columns)
        if axis is not axes[0, 0]:
            outline(axis, view)
        frame(axis, view, title.format(node + 1))
        axis.add_patch(Rectangle(corner, *size, fill=False, ec=MARK, lw=3))
    for index in range(len(ours)):
        row, column = divmod(index, shape[1])
        numbered = len(ours) <= 36 or not (row % 2 or column % 2)
        if numbered and len(ours) <= 144:
            axes[0, 0].text(
                columns[column] + 0.01 * view.size[1], rows[row] + 0.01 * view.size[0],
                str(index + 1), va='top', fontsize=8 if len(ours) <= 36 else 6,
                color='white', clip_on=True,
                bbox=dict(facecolor='black', edgecolor='none', pad=0.8, alpha=0.6),
            )  # fmt: skip
    names = [str(index + 1) for index in range(len(ours))]
    for axis, values, title in (
        (axes[1, 0], theirs, 'teacher: all pairs'),
        (axes[1, 1], ours, 'student: all pairs'),
    ):
        image = draw_matrix(axis, values, names, title, vmin=low, vmax=1)
    different = draw_matrix(
        axes[1, 2], squares, names, 'squared difference; loss: its mean', vmin=0, cmap='cividis'
    )
    for axis in axes[1]:
        axis.set(xlabel='node')
        axis.add_patch(Rectangle((-0.5, node - 0.5), len(ours), 1, fill=False, ec=MARK, lw=2))
    axes[1, 0].set_ylabel('node')
    label = 'affinity (cosine), both rows'
    below.colorbar(image, ax=[*axes[1, :2]], location='bottom', shrink=0.7, label=label)
    below.colorbar(
        different, ax=axes[1, 2], location='bottom', label='(difference of affinities)²'
    )
    return figure


def draw_holistic(view: View, compared: Compared) -> Any:
    """Draw the mean activation of both, and say what the critic thinks of them.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    critic, scores = compared.loss(0).critic, []
    for x in (compared.teacher[0], compared.student[0]):
        with torch.no_grad():
            scores.append(float(copy.deepcopy(critic).eval()(x)))
    note = f' Score of the critic: teacher {scores[0]:.3g}, student {scores[1]:.3g}.'
    return draw_activations(view, compared, note)


def _distributions(compared: Compared, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class distributions of student and teacher, ``(C, H, W)``, and their KL, ``(H, W)``."""
    s, t = (two_class_logits(x[level]) for x in (compared.student, compared.teacher))
    temperature = compared.loss(level).temperature
    ours, theirs = ((x[0] / temperature).softmax(0) for x in (s, t))
    return ours, theirs, soft_kl(s, t, temperature, 1)[0]


def _class_names(view: View, compared: Compared, count: int) -> Sequence[str] | None:
    """Names of the classes, of which one channel may stand for two."""
    names = compared.channels or view.classes
    if compared.student[0].shape[1] == 1 and len(names) == 1:
        return f'not {names[0]}', names[0]
    return names if len(names) == count and (compared.channels or count == 2) else None


class Nodes(NamedTuple):
    """The nodes of a map: edges in pixels of the picture, affinities of student and teacher."""

    rows: Array
    columns: Array
    ours: Array
    theirs: Array


def _find_nodes(view: View, compared: Compared, level: int) -> Nodes:
    shape, scale = compared.student[level].shape[2:], compared.loss(level).scale
    edges = []
    for side, pixels in zip(shape, view.batch_shape, strict=True):
        starts = [*range(0, side, _window(side, scale)), side]
        edges.append(np.array(starts) * pixels / side)
    ours, theirs = (x.numpy() for x in _affinities(compared, level))
    return Nodes(edges[0], edges[1], ours, theirs)


def _window(side: int, scale: float) -> int:
    """How many positions a node is high or wide."""
    return max(1, int(side * scale))


def _affinities(compared: Compared, level: int) -> list[Tensor]:
    """Affinities of all pairs of nodes, ``(nodes, nodes)``, of student and teacher."""
    scale, maps = compared.loss(level).scale, (compared.student[level], compared.teacher[level])
    units = (unit_nodes(x, scale, True)[0] for x in maps)
    return [x.T @ x for x in units]


def _pixel_wise_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        ours, theirs, kl = _distributions(compared, level)
        if loss.divergence == 'mse':
            kl = (ours - theirs).square().sum(0)
        factor = getattr(loss, 'published_batch', None) or 1
        maps.append(loss.weight * factor * kl / kl.numel())
    return maps


def _pair_wise_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, s in enumerate(compared.student):
        loss = compared.loss(level)
        ours, theirs = _affinities(compared, level)
        nodes = (ours - theirs).square().mean(1) / len(ours)
        row, column = (torch.arange(n) // _window(n, loss.scale) for n in s.shape[2:])
        index = row[:, None] * (int(column[-1]) + 1) + column
        cells = torch.bincount(index.flatten())[index]
        maps.append(loss.weight * nodes[index] / cells)
    return maps


CLASSES = LossPictures(
    draw_pixel_wise, _pixel_wise_shares, 'how far apart the class distributions are'
)
PICTURES: dict[type, Known] = {
    PixelWiseLoss: CLASSES,
    PairWiseLoss: LossPictures(draw_pair_wise, _pair_wise_shares, 'the loss of each node'),
    HolisticLoss: ANY._replace(draw=draw_holistic),
}
