"""Queries: which are paired, and where those of the teacher look."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.lines import Line2D
from torch import Tensor
from torch.nn import functional as F

from kd_dense.adapters import resize
from kd_dense.losses import QueryBoxLoss, QueryFeatureLoss, QueryMaskLoss, QueryPointLoss
from kd_dense.losses.queries.boxes import compare_layer, corners, match_boxes
from kd_dense.losses.queries.features import query_masks
from kd_dense.losses.queries.masks import match_masks
from kd_dense.losses.queries.matching import (
    Layer,
    layers_of,
    matched_count,
    paired_layers,
    take,
)
from kd_dense.losses.queries.points import compare_points
from kd_dense.mm.pictures.canvas import (
    STUDENT,
    TEACHER,
    Tag,
    begin,
    begin_row,
    draw_box,
    draw_truth,
    frame,
    legend_below,
    level_name,
    name_of,
    outline,
    paint,
    paint_image,
    panel,
    put_tags,
)
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View
from kd_dense.mm.randomness import kept_random_state

__all__ = ['PICTURES', 'draw_looks', 'draw_masks', 'draw_pairs', 'draw_points']

SHOWN = 8  # queries of the teacher, the surest
MASKS = 5  # likewise, whose masks are shown
CELLS = 24  # of a picture's side, that a query is put into


def draw_pairs(view: View, compared: Compared) -> Any:
    """Draw the teacher's surest queries and their partners, in the first and the last layer.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    ours, theirs = _layers(compared)
    pairs, sigmoid = _pairs(compared), compared.loss(0).settings['sigmoid']
    chosen = dict.fromkeys((0, len(ours) - 1))
    columns = 1 + len(chosen)
    figure = begin(
        panel(view, max(columns, 2)) + 0.75,
        'Which queries are paired?',
        f"The teacher's {SHOWN} surest queries, and the queries of the student that learn from "
        'them; all the others are paired as well. Percentages: of the teacher and of the student.',
    )
    axes = figure.subplots(1, columns, squeeze=False)[0]
    draw_truth(axes[0], view, columns)
    frame(axes[0], view, 'picture')
    for axis, index in zip(axes[1:], chosen, strict=True):
        paint_image(axis, view, grey=True, fade=0.8)
        students, teachers = (one[0] for one in pairs[index])
        _draw_layer(axis, view, ours[index], theirs[index], students, teachers, sigmoid)
        layer = f'layer {index + 1}' + (' (last)' if index == len(ours) - 1 else '')
        frame(axis, view, layer)
    legend_below(
        figure,
        [Line2D([], [], color=TEACHER, label='teacher'),
         Line2D([], [], color=STUDENT, ls='--', label='student'),
         Line2D([], [], color='black', lw=0.8, label='a pair')],
        3,
    )  # fmt: skip
    return figure


def _layers(compared: Compared) -> tuple[list[Layer], list[Layer]]:
    """The layers of the student, and those of the teacher that they are compared with."""
    ours, theirs = layers_of('pictures', 'boxes', compared.student, compared.teacher)
    return ours, paired_layers(ours, theirs)


def scores_of(logits: Tensor, sigmoid: bool) -> Tensor:
    """Probabilities of the classes, without that of no object."""
    return logits.sigmoid() if sigmoid else logits.softmax(-1)[..., :-1]


def _draw_layer(
    axis: Any,
    view: View,
    ours: Layer,
    theirs: Layer,
    students: Tensor,
    teachers: Tensor,
    sigmoid: bool,
) -> None:
    height, width = view.size
    pixels = torch.tensor([width, height, width, height])
    scores, labels = scores_of(theirs.logits[0][teachers], sigmoid).max(1)
    tags = []
    for index in scores.argsort(descending=True)[:SHOWN].tolist():
        s, t, label = int(students[index]), int(teachers[index]), int(labels[index])
        found = float(scores_of(ours.logits[0, s], sigmoid)[label])
        boxes = [(corners(x) * pixels).tolist() for x in (theirs.shapes[0, t], ours.shapes[0, s])]
        for box, color, style in zip(boxes, (TEACHER, STUDENT), ('-', '--'), strict=True):
            draw_box(axis, box, color, style)
        middles = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
        axis.plot(*zip(*middles, strict=True), color='black', lw=0.8, marker='.', ms=3, zorder=3)
        text = f'{name_of(view, label)} {100 * scores[index]:.0f}, {100 * found:.0f}%'
        tags.append(Tag(boxes[0][0], boxes[0][1], text, colors=('white', TEACHER)))
    put_tags(axis, view, tags, 2)


def _pairs(compared: Compared) -> list[tuple[Tensor, Tensor]]:
    settings = compared.loss(0).settings
    return match_boxes(compared.student, compared.teacher, settings['costs'], settings['sigmoid'])


def _shares(compared: Compared) -> list[Tensor]:
    loss, pairs = compared.loss(0), _pairs(compared)
    rules = {name: loss.settings[name] for name in ('unmatched', 'sigmoid')}
    total = torch.zeros(CELLS * CELLS, dtype=torch.float64)
    for ours, theirs, (students, teachers) in zip(*_layers(compared), pairs, strict=True):
        found = compare_layer(ours, theirs, students, teachers, **rules)
        x, y = (ours.shapes[0, :, :2] * CELLS).long().clamp(0, CELLS - 1).unbind(1)
        cells = y * CELLS + x
        for part, values in zip(loss.parts, found, strict=True):
            at = cells if values.shape == cells[None].shape else cells[students[0]]
            total.index_add_(0, at, loss.settings[part] * values[0].double())
    count = matched_count(pairs[0][0], total)
    return [loss.weight * (total / count).view(CELLS, CELLS)]


def draw_points(view: View, compared: Compared) -> Any:
    """Draw what both decoders find from the same boxes, of the surest points of the teacher.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    student, teacher = _predictions(compared)
    ours, theirs = layers_of('pictures', 'boxes', student, teacher)
    figure = begin(
        panel(view, 3) + 0.75,
        'What do both decoders find from the same boxes?',
        f"The {SHOWN} points of which the teacher's last layer is surest, and what the student's "
        'layers make of them. Percentages: of the teacher and of the student.',
    )
    axes = figure.subplots(1, 3, squeeze=False)[0]
    draw_truth(axes[0], view, 3)
    frame(axes[0], view, 'picture')
    same = torch.arange(theirs[-1].shapes.shape[1])
    for axis, index in ((axes[1], 0), (axes[2], len(ours) - 1)):
        paint_image(axis, view, grey=True, fade=0.8)
        _draw_layer(axis, view, ours[index], theirs[-1], same, same, sigmoid=True)
        frame(axis, view, f'layer {index + 1}' + ' (last)' * (index == len(ours) - 1))
    legend_below(
        figure,
        [Line2D([], [], color=TEACHER, label='teacher, last layer'),
         Line2D([], [], color=STUDENT, ls='--', label='student')],
        2,
    )  # fmt: skip
    return figure


@torch.no_grad()
def _predictions(compared: Compared) -> tuple[list[Tensor], list[Tensor]]:
    with kept_random_state():
        found: tuple[list[Tensor], list[Tensor]] = compared.loss(0).predictions(
            compared.needs['decoders']
        )
    return found


def _point_shares(compared: Compared) -> list[Tensor]:
    loss = compared.loss(0)
    student, teacher = _predictions(compared)
    weight, parts = compare_points(student, teacher, loss.temperature)
    batch = 1.0 if loss.published_batch is None else float(loss.published_batch)
    scales = dict(classes=batch, l1=1 / weight.sum(), giou=1 / weight.sum())
    values = torch.stack([loss.weights[n] * scales[n] * x[0] for n, x in parts.items()]).sum(0)
    x, y = (teacher[-1][0, :, :2] * CELLS).long().clamp(0, CELLS - 1).unbind(1)
    total = torch.zeros(CELLS * CELLS, dtype=torch.float64)
    total.index_add_(0, y * CELLS + x, values.double())
    return [loss.weight * total.view(CELLS, CELLS)]


def _points(compared: Compared) -> LossPictures:
    other = ', with other points' * (compared.loss(0).points == 'random')
    what = f"the loss, each point's in the middle of the teacher's box{other}"
    return LossPictures(draw_points, _point_shares, what)


def draw_masks(view: View, compared: Compared) -> Any:
    """Draw the masks of the teacher's surest queries and of their partners, in the last layer.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    sigmoid = compared.loss(0).settings['sigmoid']
    ours, theirs = (x[-1] for x in _mask_layers(compared))
    students, teachers = (x[0] for x in _mask_pairs(compared)[-1])
    scores, labels = scores_of(theirs.logits[0][teachers], sigmoid).max(1)
    best = scores.argsort(descending=True)[:MASKS].tolist()
    columns = 1 + len(best)
    figure = begin(
        2 * (panel(view, columns) + 0.35) + 0.5,
        'Which masks are paired?',
        f"The teacher's {MASKS} surest queries in the last layer, above, and the queries of the "
        'student that learn from them. White is the mask; all the others are paired as well.',
    )
    axes = figure.subplots(2, columns, squeeze=False)
    draw_truth(axes[0, 0], view, columns)
    frame(axes[0, 0], view, 'picture')
    axes[1, 0].set_visible(False)
    for column, index in zip(axes.T[1:], best, strict=True):
        label = int(labels[index])
        sides = ((theirs, int(teachers[index])), (ours, int(students[index])))
        for axis, (layer, query), who in zip(column, sides, ('teacher', 'student'), strict=True):
            paint(axis, view, layer.shapes[0, query].sigmoid(), vmin=0, vmax=1, cmap='gray')
            outline(axis, view)
            score = float(scores_of(layer.logits[0, query], sigmoid)[label])
            frame(axis, view, f'{who}: {name_of(view, label)} {100 * score:.0f}%')
            axis.title.set_fontsize(7.5)
    return figure


def _mask_layers(compared: Compared) -> tuple[list[Layer], list[Layer]]:
    ours, theirs = layers_of('pictures', 'masks', compared.student, compared.teacher)
    return ours, paired_layers(ours, theirs)


def _mask_pairs(compared: Compared) -> list[tuple[Tensor, Tensor]]:
    settings = compared.loss(0).settings
    return match_masks(
        compared.student, compared.teacher, settings['costs'], None, settings['sigmoid']
    )


def _mask_shares(compared: Compared) -> list[Tensor]:
    loss, pairs = compared.loss(0), _mask_pairs(compared)
    layers = zip(*_mask_layers(compared), pairs, strict=True)
    apart = torch.zeros(())
    for ours, theirs, (students, teachers) in layers:
        z, m = take(ours.shapes, students), take(theirs.shapes, teachers)
        m = resize(m, z.shape[2:]).sigmoid()
        found = F.binary_cross_entropy_with_logits(z, m, reduction='none')
        apart = apart + found[0].double().sum(0) / found[0, 0].numel()
    count = matched_count(pairs[0][0], apart)
    return [loss.weight * loss.settings['mask'] * apart / count]


def draw_looks(view: View, compared: Compared) -> Any:
    """Draw where the teacher's queries look, in the first and the last layer, on each level.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels, taught = compared.teacher, compared.needs['taught_queries']
    last = len(taught.states) - 1
    chosen = dict.fromkeys((0, last))
    columns = 2 + len(chosen)
    figure = begin(
        len(levels) * (panel(view, columns) + 0.6) + 0.2,
        'Which differences of the features count, and how much?',
        "A position counts as the teacher's queries are like its features there, the better ones "
        'more, over the most in the picture; on the right what it adds to the loss in all layers.',
    )
    axes = figure.subplots(len(levels), columns, squeeze=False)
    for index, (row, maps, share) in enumerate(
        zip(axes, levels, _feature_shares(compared), strict=True)
    ):
        begin_row(row[0], view, columns, index, level_name(index, len(levels), view, maps))
        masks = query_masks(maps, taught)
        for axis, layer in zip(row[1:-1], chosen, strict=True):
            image = paint(axis, view, masks[layer][0, 0], vmin=0, vmax=1)
            outline(axis, view)
            name = f'layer {layer + 1}' + ' (last)' * (layer == last)
            frame(axis, view, '' if index else name)
        figure.colorbar(image, ax=[*row[1:-1]], location='bottom', shrink=0.7, aspect=20)
        image = paint(row[-1], view, share, vmin=0, cmap='cividis')
        outline(row[-1], view)
        frame(row[-1], view, '' if index else 'adds to\nthe loss')
        figure.colorbar(image, ax=row[-1], location='bottom', aspect=10, format='%.1g')
    return figure


def _feature_shares(compared: Compared) -> list[Tensor]:
    shares = []
    for index, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        masks = torch.cat(query_masks(t, compared.needs['taught_queries']))[:, 0]
        apart = (s[0] - t[0]).double().square().sum(0)
        shares.append(
            compared.loss(index).weight * masks.double().square().sum(0) * apart / s[0].numel()
        )
    return shares


PICTURES: dict[type, Known] = {
    QueryBoxLoss: LossPictures(
        draw_pairs, _shares, "the loss, each query's in the middle of the student's box"
    ),
    QueryPointLoss: _points,
    QueryMaskLoss: LossPictures(draw_masks, _mask_shares, 'the part mask'),
    QueryFeatureLoss: LossPictures(draw_looks, _feature_shares, 'the loss'),
}
