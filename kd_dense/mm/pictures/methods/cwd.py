"""CWD: channels as distributions over positions."""

from __future__ import annotations

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
    name_of,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import ANY, Known, LossPictures
from kd_dense.mm.pictures.methods.skd import CLASSES
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_cwd']

ROWS = 2  # channels that are shown of a single map


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


CHANNELS = LossPictures(draw_cwd, _shares, 'the loss, all channels together')


def _by_norm(compared: Compared) -> LossPictures:
    """Other norms make other distributions: ``spatial`` those of the classes at a position."""
    norm, where = compared.loss(0).norm, compared.loss(0).where
    known = {'channel': CHANNELS, 'spatial': CLASSES if where == 'all' else ANY}
    return known.get(norm, ANY)


PICTURES: dict[type, Known] = {CWDLoss: _by_norm}
