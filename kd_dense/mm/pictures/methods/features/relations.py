"""Relations: matrices of channels, and where a position finds its like."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd_dense.functional import soft_kl, unit
from kd_dense.losses import (
    CCKDLoss,
    CrossImageLoss,
    ICKDLoss,
    NSTLoss,
    PKTLoss,
    RelationLoss,
    RKDLoss,
    SPLoss,
)
from kd_dense.losses.features.relations.gram import affinities
from kd_dense.losses.features.relations.rows import pooled
from kd_dense.mm.pictures.canvas import (
    begin,
    begin_row,
    draw_matrix,
    frame,
    level_name,
    mark,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import ANY, Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_channel_relations', 'draw_likeness']

MOST = 24  # channels in a matrix


def draw_channel_relations(view: View, compared: Compared) -> Any:
    """Draw the relations of the channels that differ most, on each level.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = len(compared.student)
    classes = compared.channels or ()
    what = 'classes' if classes else 'channels'
    figure = begin(
        levels * 3.4,
        f'Which {what} are active together?',
        f'How each of the {what} relates to the others; of several windows, in the first.'
        + ('' if classes else f' Shown: the {MOST} whose relations differ most.'),
    )
    axes = figure.subplots(levels, 3, squeeze=False)
    for index, row in enumerate(axes):
        loss = compared.loss(index)
        ours, theirs = (
            affinities(x[index].double(), loss.settings)[0]
            for x in (compared.student, compared.teacher)
        )
        squares = (ours - theirs).square()
        worst = squares.sum(1).argsort(descending=True)[:MOST].sort().values
        named = len(classes) == len(squares)
        names = [classes[i] if named else str(i) for i in worst.tolist()]
        t, s, d = (x[worst][:, worst].numpy() for x in (theirs, ours, squares))
        limits = dict(vmin=min(t.min(), s.min()), vmax=max(t.max(), s.max()))
        image = draw_matrix(row[0], t, names, 'teacher', **limits)
        draw_matrix(row[1], s, names, 'student', **limits)
        apart = draw_matrix(row[2], d, names, 'squared difference', vmin=0, cmap='cividis')
        row[0].set_ylabel(level_name(index, levels, view, compared.teacher[index]))
        figure.colorbar(image, ax=[*row[:2]], shrink=0.8, label='relation')
        figure.colorbar(apart, ax=row[2], shrink=0.8, format='%.1g')
    return figure


def draw_likeness(view: View, compared: Compared) -> Any:
    """Draw how alike all positions are to the one that differs most, on each level.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels, shares = len(compared.student), _position_shares(compared)
    figure = begin(
        levels * (panel(view, 4) + 0.65) + 0.2,
        'Where does a position find its like?',
        'Cosine of the features at the marked place, where the loss is largest, with those at all '
        'others; on the right what each position adds to the loss.',
    )
    axes = figure.subplots(levels, 4, squeeze=False)
    for index, (row, share) in enumerate(zip(axes, shares, strict=True)):
        begin_row(row[0], view, 4, index, level_name(index, levels, view, compared.teacher[index]))
        place = divmod(int(share.argmax()), share.shape[1])
        at = place[0] * share.shape[1] + place[1]
        like = []
        for x in (compared.teacher, compared.student):
            features = unit(pooled(x[index][:1], _pool(compared, index)), 1)
            like.append((features.flatten(2)[0].T @ features.flatten(2)[0, :, at]).view_as(share))
        low = min(float(x.min()) for x in like)
        for axis, values, who in zip(row[1:3], like, ('teacher', 'student'), strict=True):
            image = paint(axis, view, values, vmin=low, vmax=1)
            outline(axis, view)
            frame(axis, view, '' if index else who)
        apart = paint(row[3], view, share, vmin=0, cmap='cividis')
        frame(row[3], view, '' if index else 'adds to\nthe loss')
        for axis in row:
            mark(axis, view, share.shape, *place)
        figure.colorbar(
            image, ax=[*row[1:3]], location='bottom', shrink=0.7, aspect=20, label='cosine'
        )
        figure.colorbar(apart, ax=row[3], location='bottom', aspect=14, format='%.1g')
    return figure


def _pool(compared: Compared, index: int) -> int:
    loss = compared.loss(index)
    pool: int = loss.settings.pool if isinstance(loss, RelationLoss) else loss.pool
    return pool


def _position_shares(compared: Compared) -> list[Tensor]:
    """What each position adds, of one picture alone."""
    maps = []
    for index, x in enumerate(compared.student):
        loss = compared.loss(index)
        pool = _pool(compared, index)
        size = pooled(x, pool).shape[2:]
        if isinstance(loss, RelationLoss):
            ours, theirs = (
                affinities(y[index].double(), loss.settings)[0]
                for y in (compared.student, compared.teacher)
            )
            count = len(ours) ** 2 if loss.settings.reduction == 'mean' else len(ours)
            apart = (ours - theirs).square().sum(1) / count
        else:
            s, t = (
                unit(pooled(y[index], pool).double(), 1).flatten(2)[0]
                for y in (compared.student, compared.teacher)
            )
            s, t = (y.T @ y / loss.temperature for y in (s, t))
            apart = soft_kl(s, t, 1.0, dim=1)
            apart = apart / len(apart)
        maps.append((loss.weight * apart).view(size).float())
    return maps


def _by_settings(compared: Compared) -> LossPictures:
    settings = compared.loss(0).settings
    if settings.over == 'channels':
        return ANY._replace(draw=draw_channel_relations)
    if settings.over == 'positions' and settings.windows == (1, 1):
        return OF_POSITIONS
    return ANY


OF_POSITIONS = LossPictures(draw_likeness, _position_shares, 'the loss')
# Of images there is one in a picture, and of the set of all channels no place has a part.
PICTURES: dict[type, Known] = {
    RelationLoss: _by_settings,
    ICKDLoss: _by_settings,
    CrossImageLoss: OF_POSITIONS,
    **dict.fromkeys((SPLoss, RKDLoss, PKTLoss, CCKDLoss, NSTLoss), ANY),
}
