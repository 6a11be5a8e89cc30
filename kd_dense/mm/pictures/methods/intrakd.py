"""IntRA-KD: affinities of the areas of classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_dense.losses import IntRALoss
from kd_dense.losses.intrakd.intrakd import region_affinities
from kd_dense.losses.intrakd.regions import region_masks, region_moments
from kd_dense.mm.pictures.canvas import (
    begin,
    draw_matrix,
    draw_truth,
    frame,
    name_of,
    outline,
    panel,
    subplots,
    tint,
)
from kd_dense.mm.pictures.general import Known, LossPictures, draw_activations
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import Array, View

__all__ = ['PICTURES', 'draw_affinity']

AREAS = 5  # areas of classes that are shown


def draw_affinity(view: View, compared: Compared) -> Any:
    """Draw the areas of the classes, and how alike their features are.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    labels, masks, ours, theirs = _find_regions(compared, 0)
    if not labels:
        return draw_activations(view, compared)
    names = [name_of(view, label).replace('background', 'backgr.') for label in labels]
    areas = labels[:AREAS]
    columns = len(areas) + 1
    across = 3 if columns > 3 and view.size[1] > 1.5 * view.size[0] else columns
    rows = -(-columns // across)
    wide = panel(view, across)
    side = 1.3 if len(names) < 7 else 2.6
    figure = begin(
        rows * (wide + 0.3) + 3 * (side + 0.35),
        'IntRA-KD: how alike are the classes of a picture to each other?',
        'Mean, variance and skewness of the features describe the area of a class; '
        'affinity: the cosine between two classes.',
    )
    above, below = figure.subfigures(2, 1, height_ratios=(rows * (wide + 0.3), 3 * (side + 0.35)))
    axes = subplots(above, rows, across, columns)
    draw_truth(axes[0], view, across)
    frame(axes[0], view, 'picture')
    for axis, label, area, name in zip(axes[1:], labels, masks, names, strict=False):
        tint(axis, view, area)
        outline(axis, view, label)
        frame(axis, view, f'area of {name}')
    axes = below.subplots(3, 3)
    squares = (ours - theirs) ** 2
    numbers = '.2f' if len(names) < 7 else ''
    finer = '.3f' if numbers and squares.max() < 0.1 else numbers
    low = min(ours.min(), theirs.min())
    for column, moment in enumerate(('mean', 'variance', 'skewness')):
        for row, (values, who) in enumerate(((theirs, 'teacher'), (ours, 'student'))):
            title = f'{moment}: {who}'
            image = draw_matrix(
                axes[row, column], values[column], names, title, numbers, vmin=low, vmax=1
            )
        apart = draw_matrix(
            axes[2, column], squares[column], names, f'{moment}: squared difference', finer,
            vmin=0, vmax=squares.max(), cmap='cividis',
        )  # fmt: skip
    below.colorbar(image, ax=axes[:2], shrink=0.8, label='affinity (cosine)')
    below.colorbar(apart, ax=axes[2], label='(difference)²; loss:\nthe mean of all')
    return figure


class Regions(NamedTuple):
    """The areas of the classes of a picture, and their affinities; the largest area first."""

    labels: list[int]
    masks: Tensor  # (K, H, W)
    ours: Array  # (3, K, K)
    theirs: Array


def _find_regions(compared: Compared, level: int) -> Regions:
    loss = compared.loss(level)
    s, t = compared.student[level], compared.teacher[level]
    masks = region_masks(
        compared.needs['segmentation'], s.shape[-2:], loss.num_classes, loss.regions,
        loss.kernel, loss.ignore_index,
    )  # fmt: skip
    eps = loss.eps if loss.eps is not None else 1e-6 if loss.regions == 'dilate' else 1e-10
    area = masks[0].sum(1)
    present = [int(c) for c in area.argsort(descending=True) if area[c] > 0]
    masks = masks[:, present]
    how = loss.regions, loss.pixels, loss.third_denominator, eps
    ours, theirs = (
        region_affinities(region_moments(x, masks, *how), loss.cos_eps)[0].numpy() for x in (s, t)
    )
    return Regions(present, masks[0].view(-1, *s.shape[-2:]), ours, theirs)


def _affinity_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss, found = compared.loss(level), _find_regions(compared, level)
        count = len(found.labels) if loss.normaliser == 'present' else loss.num_classes
        classes = ((found.ours - found.theirs) ** 2).sum((0, 2)) / (3 * max(count, 1) ** 2)
        weight = torch.from_numpy(classes) / found.masks.sum((1, 2))
        maps.append(loss.weight * (weight[:, None, None] * found.masks).sum(0))
    return maps


PICTURES: dict[type, Known] = {
    IntRALoss: LossPictures(
        draw_affinity, _affinity_shares, 'the loss of each class, spread over its area'
    ),
}
