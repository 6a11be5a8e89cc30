"""CWD: channels as distributions over positions."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from kd_dense.functional import share_of_labels, soft_kl
from kd_dense.losses import CWDLoss
from kd_dense.mm.pictures.canvas import (
    begin,
    begin_row,
    by_area,
    frame,
    level_name,
    name_of,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import ANY, Known, LossPictures
from kd_dense.mm.pictures.methods.skd import CLASSES
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_counted', 'draw_cwd']

ROWS = 2  # channels that are shown of a single map
WHERE = {'edge': 'at the edges of classes', 'body': 'away from the edges of classes'}


def draw_cwd(view: View, compared: Compared) -> Any:
    """Draw channels as distributions over positions, where they differ most and least.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    rows: list[tuple[int, int, float]] = []
    for level, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        apart = soft_kl(s.flatten(2), t.flatten(2), compared.loss(level).temperature, 2)
        kl = apart[0].tolist()
        known = _present(view) if compared.channels else [*range(len(kl))]
        # Background is nowhere in particular.
        known = [c for c in known if not compared.channels or name_of(view, c) != 'background']
        ordered = sorted(known or range(len(kl)), key=kl.__getitem__)
        count = ROWS if len(compared.student) == 1 else 1
        chosen = dict.fromkeys([ordered[-1], ordered[0]][:count])
        rows += [(level, channel, kl[channel]) for channel in chosen]
    temperature = compared.loss(0).temperature
    single = len(compared.student) == 1
    figure = begin(
        len(rows) * (panel(view, 5) + (0.25 if single else 0.7)) + (0.75 if single else 0.2),
        f'CWD: where does each {"class " if compared.channels else ""}channel look?',
        'A softmax over all positions makes a channel a distribution: its share of each position. '
        'Shown: ' + ('where they differ most and least.' if single else 'what differs most.'),
    )
    axes = figure.subplots(len(rows), 5, squeeze=False)
    raw = 'logits' if compared.channels else 'activations'
    images: list[list[Any]] = []
    for index, (axis, (level, channel, nats)) in enumerate(zip(axes, rows, strict=True)):
        pair = [m[level][0, channel] for m in (compared.teacher, compared.student)]
        shares = [100 * (x / temperature).flatten().softmax(0).view_as(x) for x in pair]
        name = compared.channels[channel] if compared.channels else str(channel)
        text = f'channel {"of class " if compared.channels else ""}{name}'
        begin_row(axis[0], view, 5, index, text if single else f'level {level + 1}\n{text}')
        titles = (f'teacher: {raw}', f'student: {raw}', 'teacher: softmax', 'student: softmax')
        images.append([])
        for one, values, title in zip(axis[1:], (*pair, *shares), titles, strict=True):
            images[-1].append(paint(one, view, values))
            outline(one, view)
            frame(one, view, '' if index else title)
        axis[4].set_xlabel(f'KL × T²: {nats:.3g} nats', fontsize=8)
    whole = [slice(None)] if single else [slice(i, i + 1) for i in range(len(rows))]
    for group in whole:
        for pair_of, label in ((slice(0, 2), raw[:-1]), (slice(2, 4), 'share of a position, %')):
            both = [image for row in images[group] for image in row[pair_of]]
            low = min(float(i.get_array().min()) for i in both)
            high = max(float(i.get_array().max()) for i in both)
            for image in both:
                image.set_clim(low, high)
            columns = slice(pair_of.start + 1, pair_of.stop + 1)
            figure.colorbar(
                both[0], ax=axes[group, columns], location='bottom', shrink=0.8,
                aspect=22, label=label + (f' (T = {temperature:g})' if '%' in label else ''),
            )  # fmt: skip
    return figure


def _present(view: View) -> list[int]:
    """The classes of the ground truth; all, if it is not known."""
    if view.segmentation is not None:
        found = by_area(view.segmentation)
    elif view.labels is not None:
        found = sorted(set(view.labels.tolist()))
    else:
        found = []
    return [label for label in found if label < len(view.classes)] or [*range(len(view.classes))]


def _shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        loss = compared.loss(level)
        counted = _counted(compared, level)
        ours, theirs = ((x[0].double() / loss.temperature + counted).flatten(1) for x in (s, t))
        p, q = theirs.softmax(1), ours.softmax(1)
        if loss.divergence == 'mse':
            shares = (p - q).square()
        else:  # its sum over the positions is the KL, and no position adds less than 0
            log_ratio = theirs.log_softmax(1) - ours.log_softmax(1)
            shares = loss.temperature**2 * (p * log_ratio - p + q)
        maps.append(loss.weight * shares.mean(0).view(s.shape[2:]))
    return maps


def _counted(compared: Compared, level: int) -> Tensor:
    """What is added to logits where some positions count more than others, ``(H, W)``."""
    loss, size = compared.loss(level), compared.student[level].shape[2:]
    if loss.where == 'all':
        return torch.zeros(size, dtype=torch.float64)
    truth = compared.needs['segmentation']
    [share] = share_of_labels(truth, size, loss.where, loss.edge, loss.ignore_index).double()
    if not share.any():
        return torch.zeros_like(share)
    return torch.where(share > 0, share.log(), -1e30)


def draw_counted(
    view: View, compared: Compared, shares: Callable[[Compared], list[Tensor]]
) -> Any:
    """Draw which positions count, and what each adds to the loss; if all counted, and as it is.

    Args:
        view: The picture.
        compared: What the term compares there, with a loss at edges or away from them.
        shares: What each position adds.
    """
    loss, levels = compared.loss(0), len(compared.student)
    figure = begin(
        levels * (panel(view, 4) + 0.65) + 0.2,
        f'Which positions count? Those {WHERE[loss.where]}',
        f'A pixel is at an edge where the {loss.edge}x{loss.edge} pixels around it hold another '
        'class, and a position counts by its share of such pixels, or of the others. Beside it '
        'what each position would add to the loss if all counted, and what it adds.',
    )
    losses: list[Any] = [copy(x) for x in compared.losses]
    for one in losses:
        one.where = 'all'
    of_all = compared._replace(losses=losses)
    axes = figure.subplots(levels, 4, squeeze=False)
    columns = zip(axes, shares(of_all), shares(compared), strict=True)
    for index, (row, everywhere, counted) in enumerate(columns):
        begin_row(row[0], view, 4, index, level_name(index, levels, view, compared.teacher[index]))
        [share] = share_of_labels(
            compared.needs['segmentation'],
            counted.shape,
            loss.where,
            loss.edge,
            loss.ignore_index,
        )
        maps = share, everywhere, counted
        titles = 'share of its pixels', 'if all counted', 'adds to the loss'
        for axis, values, title in zip(row[1:], maps, titles, strict=True):
            cmap = 'viridis' if title == titles[0] else 'cividis'
            image = paint(axis, view, values, vmin=0, cmap=cmap)
            figure.colorbar(image, ax=axis, location='bottom', aspect=14, format='%.2g')
            outline(axis, view)
            frame(axis, view, '' if index else title)
    return figure


CHANNELS = LossPictures(draw_cwd, _shares, 'the loss, all channels together')
COUNTED = CHANNELS._replace(draw=lambda view, compared: draw_counted(view, compared, _shares))


def _by_norm(compared: Compared) -> LossPictures:
    """Other norms make other distributions: ``spatial`` those of the classes at a position."""
    of_all = compared.loss(0).where == 'all'
    known = {
        'channel': CHANNELS if of_all else COUNTED,
        'spatial': CLASSES if of_all else ANY,
    }
    return known.get(compared.loss(0).norm, ANY)


PICTURES: dict[type, Known] = {CWDLoss: _by_norm}
