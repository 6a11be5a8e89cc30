"""Logits: class distributions at each position, and their correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_dense.functional import share_of_labels, two_class_logits
from kd_dense.losses import (
    CAMKDLoss,
    DISTLoss,
    DKDLoss,
    GDKDLoss,
    KDLoss,
    LwFLoss,
    NKDLoss,
    UnbiasedKDLoss,
    WSLDLoss,
)
from kd_dense.losses.logits.camkd import camkd_at, weights_at
from kd_dense.losses.logits.dist import correlation, moments, probabilities
from kd_dense.losses.logits.dkd import dkd_at, gdkd_at
from kd_dense.losses.logits.incremental import first_classes, known_classes
from kd_dense.losses.logits.kd import kd_at
from kd_dense.losses.logits.nkd import nkd_at
from kd_dense.losses.logits.rows import Rows, cross_entropy_at, labels_of, rows_of
from kd_dense.losses.logits.wsld import wsld_at
from kd_dense.mm.pictures.canvas import (
    begin,
    begin_row,
    cell_size,
    frame,
    level_name,
    mark,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import ANY, Known, LossPictures
from kd_dense.mm.pictures.methods.cwd import draw_counted
from kd_dense.mm.pictures.methods.skd import draw_pixel_wise
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_correlations', 'draw_distributions']

BARS = 12  # classes whose correlation is shown
# What a loss is a mean of, at each position: of the loss, the rows, and their labels.
At = Callable[[Any, Rows, Tensor], Tensor]


def draw_distributions(view: View, compared: Compared) -> Any:
    """Draw the class distributions at each position, as pixel-wise distillation has them.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    loss = compared.loss(0)
    student, teacher = compared.student, compared.teacher
    channels = compared.channels
    if isinstance(loss, LwFLoss | UnbiasedKDLoss):
        pairs = [_old_classes(loss, s, t) for s, t in zip(student, teacher, strict=True)]
        student, teacher = ([*x] for x in zip(*pairs, strict=True))
        channels = channels and channels[: teacher[0].shape[1]]
    if loss.standardise:
        pairs = [_rows(compared, i, student, teacher) for i in range(len(student))]
        student, teacher = ([*x] for x in zip(*pairs, strict=True))
    stand_in = KDLoss(temperature=getattr(loss, 'temperature', 1.0))
    return draw_pixel_wise(
        view,
        compared._replace(losses=[stand_in], student=student, teacher=teacher, channels=channels),
    )


def draw_correlations(view: View, compared: Compared) -> Any:
    """Draw how alike the classes of each position are, and the positions of each class.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    found = [_correlations(compared, level) for level in range(len(compared.student))]
    levels, single = len(found), len(found) == 1
    height = levels * (panel(view, 4) + 0.65) + 0.2
    figure = begin(
        height + 2.2 * single,
        'DIST: do probabilities rise and fall alike?',
        'Correlation of student and teacher, 1 where they agree: over the classes of a position, '
        'and, for a class, over the positions. Shown: how probable the likeliest class is.',
    )
    above, below = figure, None
    if single:
        above, below = figure.subfigures(2, 1, height_ratios=(height, 2.2))
    axes = above.subplots(levels, 4, squeeze=False)
    for index, (row, (p, q, positions, _)) in enumerate(zip(axes, found, strict=True)):
        begin_row(row[0], view, 4, index, level_name(index, levels, view, p[None]))
        for axis, values, who in ((row[1], q, 'teacher'), (row[2], p, 'student')):
            sure = paint(axis, view, 100 * values.amax(0), vmin=0, vmax=100)
            outline(axis, view)
            frame(axis, view, '' if index else who)
        alike = paint(row[3], view, positions, vmin=-1, vmax=1, cmap='cividis')
        frame(row[3], view, '' if index else 'classes of a position')
        if single:
            place = divmod(int(positions.argmin()), positions.shape[1])
            for axis in (row[0], row[3]):
                mark(axis, view, positions.shape, *place)
        above.colorbar(
            sure, ax=[*row[1:3]], location='bottom', shrink=0.7, aspect=20, label='probability, %'
        )
        above.colorbar(
            alike, ax=row[3], location='bottom', ticks=MaxNLocator(3), label='correlation'
        )
    if below is not None:
        _draw_classes(below, view, compared, found[0][3])
    return figure


def _draw_classes(figure: Any, view: View, compared: Compared, columns: Tensor) -> None:
    """Bars of the classes that agree least."""
    worst = columns.argsort()[:BARS].sort().values
    names = compared.channels or view.classes
    named = len(names) == len(columns)
    axis = figure.subplots()
    axis.bar(np.arange(len(worst)), columns[worst], 0.6)
    labels = [names[i] if named else str(i) for i in worst.tolist()]
    axis.set_xticks(range(len(worst)), labels, rotation=30 if len(worst) > 6 else 0)
    which = '' if len(worst) == len(columns) else f': the {len(worst)} that agree least'
    axis.set(ylabel='correlation', title=f'positions of a class{which}')
    axis.set_ylim(min(0.0, float(columns.min())), 1)
    axis.spines[['top', 'right']].set_visible(False)


def _correlations(compared: Compared, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities ``(K, H, W)`` of both, correlations ``(H, W)`` and ``(K,)``."""
    loss = compared.loss(level)
    rows = _rows(compared, level, compared.student, compared.teacher)
    p, q = (probabilities(x, loss.temperature, loss.sigmoid) for x in rows)
    positions, columns = moments(p.flatten(2), q.flatten(2), per_image=True)
    return p[0], q[0], correlation(positions)[0].view(p.shape[2:]), correlation(columns)[0]


def _rows(compared: Compared, level: int, student: list[Tensor], teacher: list[Tensor]) -> Rows:
    loss = compared.loss(level)
    sigmoid = getattr(loss, 'sigmoid', None)
    pair = student[level], teacher[level]
    return rows_of(type(loss).__name__, *pair, loss.standardise, sigmoid)


def _old_classes(loss: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the teacher's classes; its own are multiplied."""
    teacher = two_class_logits(teacher)
    old = first_classes if isinstance(loss, LwFLoss) else known_classes
    return old(student, teacher.shape[1]), teacher * loss.alpha


def _shares(at: At) -> Callable[[Compared], list[Tensor]]:
    """What each position adds to a mean over the positions that count."""

    def shares(compared: Compared) -> list[Tensor]:
        maps = []
        for level in range(len(compared.student)):
            loss = compared.loss(level)
            rows = _rows(compared, level, compared.student, compared.teacher)
            labels = torch.zeros_like(rows.teacher[:, 0], dtype=torch.long)
            valid = torch.ones_like(labels, dtype=torch.bool)
            if loss.needs:
                truth = compared.needs['segmentation']
                labels, valid = labels_of(type(loss).__name__, truth, rows, loss.ignore_index)
            values = at(loss, rows, labels).where(valid, 0)[0]
            scale = 1.0
            if getattr(loss, 'where', 'all') != 'all':  # edges, or bodies, in place of all
                counted = share_of_labels(
                    compared.needs['segmentation'],
                    values.shape,
                    loss.where,
                    loss.edge,
                    loss.ignore_index,
                )[0]
                values = at(loss, rows, labels)[0] * counted
                valid = torch.ones_like(valid)
                scale = counted.numel() / max(float(counted.sum()), 1e-12)
            maps.append(loss.weight * scale * values / _count(loss, rows, valid))
        return maps

    return shares


def _count(loss: Any, rows: Rows, valid: Tensor) -> float:
    """What the sum over the positions of a picture is divided by."""
    if getattr(loss, 'reduction', 'mean') == 'sum':
        return 1.0
    per = getattr(loss, 'per', 'position')
    if per in ('image', 'map'):
        return 1.0 if per == 'image' else valid[0].numel()
    count = max(int(valid.sum()), 1)
    return float(count * rows.student.shape[1] if per == 'entry' else count)


def _kd_at(loss: Any, rows: Rows, labels: Tensor) -> Tensor:
    kl = kd_at(rows, loss.temperature, loss.sigmoid)
    return kl if loss.temperature_squared else kl / loss.temperature**2


def _dist_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        apart = 1 - _correlations(compared, level)[2]
        factor = loss.temperature**2 if loss.temperature_squared else 1.0
        maps.append(loss.weight * factor * loss.inter * apart / apart.numel())
    return maps


def _incremental_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, both in enumerate(zip(compared.student, compared.teacher, strict=True)):
        loss = compared.loss(level)
        student, teacher = _old_classes(loss, *both)
        rows = rows_of(type(loss).__name__, student, teacher, loss.standardise)
        values = cross_entropy_at(*rows)[0]
        maps.append(loss.weight * values / (values.numel() * teacher.shape[1]))
    return maps


def _camkd_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        rows, labels, valid = _of_teachers(compared, level)
        values = camkd_at(rows, labels, valid, loss.temperature, loss.confidence).where(valid, 0)
        count = max(int(valid.sum()), 1) * (len(rows) if loss.per_teacher else 1)
        maps.append(loss.weight * values[0] / count)
    return maps


def draw_teachers(view: View, compared: Compared) -> Any:
    """Draw how well each of several teachers knows the labels, and what it counts for that.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    loss = compared.loss(0)
    rows, labels, valid = _of_teachers(compared, 0)
    weights = weights_at(rows, labels, valid, loss.confidence)[:, 0]
    weights = weights.expand(len(rows), *labels.shape[1:])
    columns = len(rows) + 1
    figure = begin(
        2 * (panel(view, columns) + 0.3) + 0.8,
        'CA-MKD: which teacher knows the label?',
        'Above: how probable the label of each position is to each teacher. Below: to the '
        'student, and what each teacher counts, the more the better it knows the label.',
    )
    axes = figure.subplots(2, columns, squeeze=False)
    begin_row(axes[0, 0], view, columns, 0, cell_size(view, compared.teacher[0]))
    logits = [rows[0].student, *(one.teacher for one in rows)]
    for axis, x, who in zip(
        (axes[1, 0], *axes[0, 1:]), logits, ('student', *_names(rows)), strict=True
    ):
        known = x.softmax(1).gather(1, labels[:, None])[0, 0].where(valid[0], torch.nan)
        sure = paint(axis, view, 100 * known, vmin=0, vmax=100)
        outline(axis, view)
        frame(axis, view, who)
    for axis, weight, who in zip(axes[1, 1:], weights, _names(rows), strict=True):
        counts = paint(axis, view, weight.where(valid[0], torch.nan), vmin=0, vmax=1,
                       cmap='cividis')  # fmt: skip
        outline(axis, view)
        frame(axis, view, f'weight of {who}')
    figure.colorbar(sure, ax=axes[1, 0], location='bottom', label='probability of the label, %')
    figure.colorbar(counts, ax=axes[1, 1:], location='bottom', shrink=0.6, label='weight')
    return figure


def _names(rows: Sequence[Rows]) -> list[str]:
    return [f'teacher {index}' for index in range(1, len(rows) + 1)]


def _of_teachers(compared: Compared, level: int) -> tuple[list[Rows], Tensor, Tensor]:
    """The rows of student and each teacher; the labels, and which positions have one."""
    student, truth = compared.student[level], compared.needs['segmentation']
    rows = [rows_of('CAMKDLoss', student, x) for x in compared.teacher[level].split(1)]
    return rows, *labels_of('CAMKDLoss', truth, rows[0], compared.loss(level).ignore_index)


def _of(at: At, what: str) -> LossPictures:
    return LossPictures(draw_distributions, _shares(at), what)


def _by_settings(compared: Compared) -> LossPictures:
    """Sigmoids are many distributions at a position, of two classes each."""
    loss = compared.loss(0)
    if loss.where != 'all':
        return KD._replace(draw=lambda view, one: draw_counted(view, one, KD.shares))
    return KD._replace(draw=ANY.draw) if loss.sigmoid else KD


KD = _of(_kd_at, 'how far apart the class distributions are')
OLD = LossPictures(draw_distributions, _incremental_shares, "the loss of the teacher's classes")
PICTURES: dict[type, Known] = {
    CAMKDLoss: LossPictures(
        draw_teachers, _camkd_shares, 'the loss, each teacher by what it knows'
    ),
    KDLoss: _by_settings,
    DISTLoss: LossPictures(
        draw_correlations, _dist_shares, 'the part between the classes of a position'
    ),
    DKDLoss: _of(
        lambda loss, rows, labels: dkd_at(rows, labels, loss.alpha, loss.beta, loss.temperature),
        'the loss, both parts together',
    ),
    GDKDLoss: _of(
        lambda loss, rows, labels: gdkd_at(
            rows, loss.between, loss.top, loss.rest, loss.k, loss.temperature
        ),
        'the loss, all three parts together',
    ),
    NKDLoss: _of(
        lambda loss, rows, labels: nkd_at(rows, labels, loss.gamma, loss.temperature),
        'the loss, both parts together',
    ),
    WSLDLoss: _of(
        lambda loss, rows, labels: wsld_at(rows, labels, loss.temperature), 'the loss as weighed'
    ),
    LwFLoss: OLD,
    UnbiasedKDLoss: OLD,
}
