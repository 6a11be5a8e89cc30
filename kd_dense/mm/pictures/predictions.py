"""What each model finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.patches import Patch
from torch import Tensor

from kd_dense.losses.ld.regions import box_iou
from kd_dense.mm.pictures.canvas import (
    COLORS,
    MARK,
    STUDENT,
    STYLE,
    TAGGED,
    Tag,
    begin,
    by_area,
    draw_box,
    draw_truth,
    frame,
    legend_below,
    middles,
    name_areas,
    name_of,
    paint_image,
    panel,
    put_tags,
    subplots,
    thinned,
)
from kd_dense.mm.pictures.observe import Prediction
from kd_dense.mm.pictures.views import UNLABELLED, Array, View

__all__ = ['draw_predictions']

SCORE = 0.3  # boxes below are not shown
IOU = 0.5  # a box with at least this much overlap with one of its class is right
DRAWN = 20  # boxes that are drawn of one model, at most


@matplotlib.rc_context(STYLE)
def draw_predictions(view: View, predictions: Mapping[str, Prediction]) -> Any:
    """Draw the picture, what is known to be in it, and what each model finds.

    Args:
        view: The picture.
        predictions: By the name of the model; the teacher first.
    """
    if any(p.segmentation is not None for p in predictions.values()):
        return _draw_segmentations(view, predictions)
    return _draw_detections(view, predictions)


def _draw_segmentations(view: View, predictions: Mapping[str, Prediction]) -> Any:
    labels = {
        name: p.segmentation for name, p in predictions.items() if p.segmentation is not None
    }
    truth = view.segmentation
    maps = [*labels.values(), *([] if truth is None else [truth])]
    shown = by_area(np.concatenate([thinned(m).ravel() for m in maps]))
    # Colours repeat, paler, where there are more classes than can be told apart; names stand
    # on the areas as well.
    colors: dict[int, tuple[float, float, float]] = {}
    for index, label in enumerate(x for x in shown if name_of(view, x) != 'background'):
        paler = (0, 0.5, 0.75)[min(index // len(COLORS), 2)]
        red, green, blue = (c + (1 - c) * paler for c in to_rgb(COLORS[index % len(COLORS)]))
        colors[label] = red, green, blue
    colors |= dict.fromkeys((x for x in shown if x not in colors), to_rgb('#BBBBBB'))
    reference = truth if truth is not None else next(iter(labels.values()))
    wide = view.size[1] > 1.5 * view.size[0]
    columns = 2 if wide else 1 + len(labels)
    rows = 1 + len(labels) if wide else 2
    legend = -(-len(shown) // 7)
    against = 'wrong' if truth is not None else 'unlike the teacher'
    figure = begin(
        rows * (panel(view, columns) + 0.3) + 0.3 + 0.2 * legend,
        'What does each model find?',
        'Classes in colour; '
        + ('wrong pixels in orange' if truth is not None else 'no ground truth is known')
        + ', pixels without a label hatched.',
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    axes = axes.T if wide else axes
    paint_image(axes[0, 0], view)
    frame(axes[0, 0], view, 'picture')
    if truth is None:
        axes[1, 0].set_visible(False)
    else:
        _paint_labels(axes[1, 0], view, truth, colors, columns)
        frame(axes[1, 0], view, 'ground truth')
    for column, (name, found) in enumerate(labels.items(), 1):
        _paint_labels(axes[0, column], view, found, colors, columns)
        frame(axes[0, column], view, name)
        counted = reference != UNLABELLED
        different = (found != reference) & counted
        paint_image(axes[1, column], view, grey=True)
        _cover(axes[1, column], view, different, to_rgba(MARK, 0.85))
        _hatch(axes[1, column], view, ~counted)
        share = different.sum() / max(counted.sum(), 1)
        first = truth is None and column == 1
        title = 'compared with' if first else f'{against}: {share:.1%}'
        frame(axes[1, column], view, title)
    handles = [Patch(color=colors[label], label=name_of(view, label)) for label in shown]
    legend_below(figure, handles, min(7, len(shown)), fontsize=8)
    return figure


def _paint_labels(
    axis: Any, view: View, labels: Array, colors: Mapping[int, Any], columns: int
) -> None:
    paint_image(axis, view, grey=True, fade=0.8)
    overlay = np.zeros((*labels.shape, 4))
    for label, color in colors.items():
        overlay[labels == label] = (*color, 0.7)
    axis.imshow(overlay, extent=(0, view.size[1], view.size[0], 0), interpolation='nearest')
    _hatch(axis, view, labels == UNLABELLED)
    name_areas(axis, view, labels, columns)


def _cover(axis: Any, view: View, mask: Array, color: tuple[float, ...]) -> None:
    overlay = np.zeros((*mask.shape, 4))
    overlay[mask] = color
    axis.imshow(overlay, extent=(0, view.size[1], view.size[0], 0))


def _hatch(axis: Any, view: View, mask: Array) -> None:
    mask = thinned(mask)
    if mask.any() and min(mask.shape) > 1:
        axis.contourf(*middles(view, mask), mask, [0.5, 1.5], colors='none', hatches=['////'])


def _draw_detections(view: View, predictions: Mapping[str, Prediction]) -> Any:
    count = 1 + len(predictions)
    columns = min(count, 2 if view.size[1] > 1.2 * view.size[0] and count > 2 else 4)
    rows = -(-count // columns)
    known = _are_known(view)
    figure = begin(
        rows * (panel(view, columns) + 0.42) + 0.4,
        'What does each model find?',
        f'Boxes with a score of at least {SCORE:g}'
        + (f'; right: of the same class as an object and IoU with it >= {IOU:g}' if known else ''),
    )
    axes = subplots(figure, rows, columns, count)
    draw_truth(axes[0], view, columns)
    frame(axes[0], view, 'picture and ground truth' if known else 'picture')
    for axis, (name, found) in zip(axes[1:], predictions.items(), strict=True):
        _draw_found(axis, view, name, found, columns)
    styles = [('right', STUDENT, '-'), ('wrong', MARK, '--'), ('missed', 'black', ':')]
    handles = [
        Patch(fill=False, ec=color, ls=style, lw=1.6, label=label)
        for label, color, style in (styles if known else [('found', STUDENT, '-')])
    ]
    legend_below(figure, handles, 3)
    return figure


def _draw_found(axis: Any, view: View, name: str, found: Prediction, columns: int) -> None:
    """Draw the boxes that a model finds, by whether they are right."""
    paint_image(axis, view, grey=True, fade=0.8)
    if found.boxes is None or found.labels is None or found.scores is None:
        frame(axis, view, f'{name}: no boxes')
        return
    keep = (found.scores >= SCORE).nonzero()[:, 0]
    keep = keep[found.scores[keep].argsort(descending=True)]
    boxes, labels, scores = (x[keep] for x in (found.boxes, found.labels, found.scores))
    right, missed = _match(view, boxes, labels)
    if found.masks is not None:
        for index, mask in enumerate(found.masks[keep.numpy()][:TAGGED]):
            _cover(axis, view, mask, to_rgba(STUDENT if right[index] else MARK, 0.35))
    for index in missed:
        assert view.boxes is not None
        draw_box(axis, view.boxes[index].tolist(), 'black', ':')
    tags = []
    for index, (box, label, score) in enumerate(
        zip(boxes[:DRAWN].tolist(), labels.tolist(), scores.tolist(), strict=False)
    ):
        color, style = (STUDENT, '-') if right[index] else (MARK, '--')
        draw_box(axis, box, color, style)
        text = f'{name_of(view, label)} {100 * score:.0f}%'
        tags.append(Tag(box[0], box[1], text, colors=('white', color)))
    put_tags(axis, view, tags, columns)
    wrong = len(boxes) - sum(right)
    counts = f'{sum(right)} right, {wrong} wrong, {len(missed)} missed'
    counts = counts if _are_known(view) else f'{len(boxes)} found'
    if len(boxes) > DRAWN:
        counts += f'; {DRAWN} drawn'
    frame(axis, view, f'{name}\n{counts}')


def _are_known(view: View) -> bool:
    """Whether it can be told which boxes are right."""
    return view.boxes is not None and view.labels is not None


def _match(view: View, boxes: Tensor, labels: Tensor) -> tuple[list[bool], list[int]]:
    """Which boxes, the surest first, are right, and which objects have none."""
    if view.boxes is None or view.labels is None:
        return [True] * len(boxes), []
    free = [*range(len(view.boxes))]
    right = []
    overlap = box_iou(boxes, view.boxes[None])[0] if len(boxes) and free else boxes.new_zeros(0)
    for index, label in enumerate(labels.tolist()):
        fitting = [o for o in free if int(view.labels[o]) == label and overlap[o, index] >= IOU]
        right.append(bool(fitting))
        if fitting:
            free.remove(max(fitting, key=lambda o: float(overlap[o, index])))
    return right, free
