"""Draw what models find in a picture, what each loss looks at, and where they still differ.

All functions return matplotlib figures that belong to no window. Import this module only where
something is drawn: it imports matplotlib.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kd_dense.functional import soft_kl
from kd_dense.losses import (
    AttentionMapLoss,
    CWDLoss,
    FGDLoss,
    HolisticLoss,
    IntRALoss,
    LDImitationLoss,
    LDLoss,
    PairWiseLoss,
    PixelWiseLoss,
)
from kd_dense.losses.ld import check_maps, mean_kl
from kd_dense.losses.ld_regions import box_iou, centers
from kd_dense.mm.loss_maps import (
    Differences,
    attention_shares,
    class_shares,
    find_focus,
    find_nodes,
    find_regions,
    imitation_shares,
    mean_activation,
    of_loss,
    region_weights,
)
from kd_dense.mm.observe import UNLABELLED, Array, Compared, Prediction, View

__all__ = [
    'draw_differences',
    'draw_predictions',
    'draw_term',
    'pixels_of',
    'save',
]

WIDTH = 9  # inches of every figure
DPI = 125
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9.5,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
}
# Told apart by colour-blind people too (Okabe and Ito).
YELLOW, TEACHER, STUDENT, MARK = '#F0E442', '#E69F00', '#0072B2', '#D55E00'
COLORS = (TEACHER, '#56B4E9', '#009E73', YELLOW, STUDENT, MARK, '#CC79A7', '#333333')
NOTHING = '#D8D8D8'

SCORE = 0.3  # boxes below are not shown
IOU = 0.5  # a box with at least this much overlap with one of its class is right
TAGGED = 12  # names in one picture, at most
DRAWN = 20  # boxes that are drawn of one model, at most
ROWS = 2  # channels that are shown of a single map
AREAS = 5  # areas of classes that are shown
SPOTS = 3  # worst places that are marked


# ---- parts of pictures


def begin(body: float, title: str, subtitle: str, width: float = WIDTH) -> Any:
    """Begin a figure with a body of so many inches below its titles."""
    lines = wrap(subtitle, round(130 * width / WIDTH))
    height = body + 0.45 + 0.16 * len(lines)
    figure = Figure(figsize=(width, height), layout='constrained')
    figure.text(0.5, 1 - 0.08 / height, title, ha='center', va='top', fontsize=13, weight='bold')
    figure.text(0.5, 1 - 0.36 / height, '\n'.join(lines), ha='center', va='top', fontsize=9.5)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.01, 0.01, 0.98, 0.99 - (height - body) / height))
    return figure


def panel(view: View, columns: int) -> float:
    """Inches that a picture is high where so many stand side by side."""
    height, width = view.size
    return min(0.94 * WIDTH / columns * height / width, 6.0)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=DPI, pil_kwargs=dict(optimize=True))


def pixels_of(figure: Any) -> Array:
    """A figure as ``(H, W, 3)``, RGB, uint8."""
    with matplotlib.rc_context(STYLE):
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def frame(axis: Any, view: View, title: str = '') -> None:
    """Show an axis as a picture: no ticks, the size of the view."""
    height, width = view.size
    axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), title=title)
    axis.set_aspect('equal')


def paint(axis: Any, view: View, values: Any, **options: Any) -> Any:
    """Paint a map at the size of the batch that it shows."""
    height, width = view.batch_shape
    return axis.imshow(
        np.asanyarray(values), extent=(0, width, height, 0), interpolation='nearest', **options
    )


def paint_image(axis: Any, view: View, grey: bool = False, fade: float = 0.55) -> None:
    """Paint the picture, or draw it in pale grey, to paint on."""
    height, width = view.size
    image: Any = view.image
    if grey:
        shade = 255 * (1 - fade) * 0.8 + fade * image.mean(2, keepdims=True)
        image = np.repeat(shade, 3, 2).astype(np.uint8)
    how = 'nearest' if max(width, height) <= 256 else 'antialiased'
    axis.imshow(image, extent=(0, width, height, 0), interpolation=how)


class Tag(NamedTuple):
    """A name, the point that its corner or middle lies at, and its colours."""

    x: float
    y: float
    text: str
    ha: str = 'left'
    va: str = 'top'
    colors: tuple[str, str] = ('black', YELLOW)


def put_tags(axis: Any, view: View, tags: Sequence[Tag], columns: int) -> None:
    """Write names, the most important first, as far as there is room for them.

    Args:
        axis: Where.
        view: What it shows.
        tags: The names.
        columns: How many pictures stand side by side.
    """
    short = all(len(tag.text) <= 3 for tag in tags)
    if columns > 4 and not short:
        return  # they would hide what they name
    font = 8 if short else 7 if columns < 4 else 6
    pixels = view.size[1] / (0.92 * WIDTH / columns) / 72  # of the picture, to a point
    taken: list[tuple[float, float, float, float]] = []
    for tag in tags:
        width, height = (0.64 * len(tag.text) + 0.3) * font * pixels, 1.45 * font * pixels
        left = tag.x - width * dict(left=0, center=0.5, right=1)[tag.ha]
        first = tag.y - height * dict(top=0, center=0.5)[tag.va]
        left = min(max(left, 0), max(view.size[1] - width, 0))
        for line in range(3):  # or right below one that lies there
            top = min(max(first, 0) + line * height, max(view.size[0] - height, 0))
            box = left, top, left + width, top + height
            if len(taken) == TAGGED or any(
                box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken
            ):
                continue
            taken.append(box)
            axis.text(
                left + width / 2, top + height / 2, tag.text, fontsize=font, weight='bold',
                ha='center', va='center', clip_on=True, color=tag.colors[0], zorder=4,
                bbox=dict(facecolor=tag.colors[1], edgecolor='none', pad=1),
            )  # fmt: skip
            break


def outline(axis: Any, view: View, only: int | None = None) -> None:
    """Draw where objects end: boxes, or the edges of labelled areas, or of one; white on black."""
    if view.segmentation is not None:
        labels = _small(view.segmentation)
        (height, width), (rows, columns) = view.size, labels.shape
        x = (np.arange(columns) + 0.5) * width / columns
        y = (np.arange(rows) + 0.5) * height / rows
        known = _by_area(labels)
        thin = 1.0 if len(known) < 8 else 0.5
        for label in known[1:] if only is None else [only]:
            for color, thick in (('black', 2.0), ('white', 0.9)):
                mask = labels == label
                axis.contour(x, y, mask, [0.5], colors=color, linewidths=thin * thick)
    elif view.boxes is not None:
        draw_boxes(axis, view, 'white')


def _small(labels: Array, most: int = 256) -> Array:
    """A label map with at most so many pixels a side: lines need no more."""
    step = max(1, -(-max(labels.shape) // most))
    return labels[step // 2 :: step, step // 2 :: step]


def _by_area(labels: Array) -> list[int]:
    """The labels in a map, the most frequent first; those of no class left out."""
    found, counts = np.unique(labels[labels != UNLABELLED], return_counts=True)
    return [int(label) for label in found[np.argsort(-counts)]]


def draw_boxes(axis: Any, view: View, color: str = YELLOW) -> None:
    """Draw the boxes of the ground truth."""
    if view.boxes is None:
        return
    for x1, y1, x2, y2 in view.boxes.tolist():
        for shade, width in (('black', 2.2), (color, 1.1)):
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=shade, lw=width))


def draw_truth(axis: Any, view: View, columns: int) -> None:
    """Draw the picture, and say which objects and areas are known to be in it."""
    paint_image(axis, view)
    if view.boxes is not None:
        draw_boxes(axis, view)
        name_boxes(axis, view, columns)
    elif view.segmentation is not None:
        name_areas(axis, view, view.segmentation, columns)


def name_boxes(axis: Any, view: View, columns: int) -> None:
    """Say beside or in each box what is in it; the largest first."""
    if view.boxes is None or view.labels is None:
        return
    labels, width = view.labels.tolist(), view.size[1]
    areas = (view.boxes[:, 2:] - view.boxes[:, :2]).prod(1)
    tags = []
    for index in areas.argsort(descending=True).tolist():
        (x, y, *_), text = view.boxes[index].tolist(), _name(view, labels[index])
        beside = len(text) <= 3 and x > 0.08 * width  # there is room for a short name
        if beside:
            tags.append(Tag(x - 0.01 * width, y, text, 'right', 'top'))
        else:
            tags.append(Tag(x, y, text))
    put_tags(axis, view, tags, columns)


def name_areas(axis: Any, view: View, labels: Array, columns: int) -> None:
    """Write the name of its class on each large area of a label map, or beside a thin one."""
    labels = _small(labels)
    (height, width), (rows, cells) = view.size, labels.shape
    found = []
    for label in _by_area(labels):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=8
        )
        for part in range(1, count):
            area = stats[part, cv2.CC_STAT_AREA]
            if area >= 0.004 * labels.size and _name(view, label) != 'background':
                found.append((area, label, parts == part, stats[part]))
    tags = []
    for _, label, mask, (left, top, *_) in sorted(found, key=lambda one: -one[0]):
        padded = np.pad(mask.astype(np.uint8), 1)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        if depth.max() < 0.09 * min(labels.shape) and len(_name(view, label)) <= 3:
            at = left * width / cells - 0.01 * width, top * height / rows, 'right', 'top'
        else:
            x, y = (column + 0.5) * width / cells, (row + 0.5) * height / rows
            at = x, y, 'center', 'center'
        tags.append(Tag(*at[:2], _name(view, label), *at[2:]))
    put_tags(axis, view, tags, columns)


def _name(view: View, label: int) -> str:
    return view.classes[label] if label < len(view.classes) else f'class {label}'


def draw_grid(axis: Any, view: View, rows: Array, columns: Array) -> None:
    """Draw edges of cells, unless they are so many that they would hide the picture."""
    if len(rows) > 26 or len(columns) > 26:
        return
    axis.hlines(rows, 0, view.size[1], color='white', lw=0.6)
    axis.vlines(columns, 0, view.size[0], color='white', lw=0.6)


def draw_matrix(
    axis: Any, values: Array, names: Sequence[str], title: str, numbers: str = '', **options: Any
) -> Any:
    """Draw a matrix, if wanted with its numbers in the given format."""
    image = axis.imshow(values, aspect='auto' if numbers else 'equal', **options)
    axis.set_title(title)
    counted = all(name.isdigit() for name in names)
    every = slice(None, None, -(-len(names) // 6) if counted and len(names) > 9 else 1)
    size = 8 if len(names) < 10 or counted else 5.5
    turned = 90 if max(map(len, names)) > 4 and len(names) > 5 else 0
    axis.set_xticks(range(len(names))[every], names[every], fontsize=size, rotation=turned)
    axis.set_yticks(range(len(names))[every], names[every], fontsize=size)
    axis.tick_params(length=0)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            dark = np.dot(image.to_rgba(value)[:3], (0.3, 0.6, 0.1)) < 0.45
            axis.text(
                column, row, format(value, numbers), ha='center', va='center', fontsize=8,
                color='white' if dark else 'black',
            )  # fmt: skip
    return image


def bar_below(figure: Any, axis: Any, image: Any) -> None:
    """Put the scale of a picture right below it."""
    below = axis.inset_axes((0.04, -0.13, 0.92, 0.06))
    high = float(image.get_clim()[1])
    long = high < 0.01  # numbers of many digits
    figure.colorbar(
        image,
        cax=below,
        orientation='horizontal',
        ticks=[0, high] if long else MaxNLocator(3, min_n_ticks=2),
        format='%.2g' if long else None,
    )


def _level(index: int, count: int, view: View, maps: Tensor) -> str:
    """Which map a row shows, where there are several."""
    cells = f'cells of {round(view.batch_shape[0] / maps.shape[2])} px'
    return f'level {index + 1}\n{cells}' if count > 1 else cells


# ---- predictions


def draw_predictions(view: View, predictions: Mapping[str, Prediction]) -> Any:
    """Draw the picture, what is known to be in it, and what each model finds.

    Args:
        view: The picture.
        predictions: By the name of the model; the teacher first.
    """
    with matplotlib.rc_context(STYLE):
        if any(p.segmentation is not None for p in predictions.values()):
            return _draw_segmentations(view, predictions)
        return _draw_detections(view, predictions)


def _draw_segmentations(view: View, predictions: Mapping[str, Prediction]) -> Any:
    labels = {
        name: p.segmentation for name, p in predictions.items() if p.segmentation is not None
    }
    truth = view.segmentation
    maps = [*labels.values(), *([] if truth is None else [truth])]
    shown = _by_area(np.concatenate([_small(m).ravel() for m in maps]))
    # Colours repeat, paler, where there are more classes than can be told apart; names stand
    # on the areas as well.
    colors: dict[int, tuple[float, float, float]] = {}
    for index, label in enumerate(x for x in shown if _name(view, x) != 'background'):
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
        overlay = np.zeros((*found.shape, 4))
        overlay[different] = to_rgba(MARK, 0.85)
        axes[1, column].imshow(overlay, extent=(0, view.size[1], view.size[0], 0))
        _hatch(axes[1, column], view, ~counted)
        share = different.sum() / max(counted.sum(), 1)
        first = truth is None and column == 1
        title = 'compared with' if first else f'{against}: {share:.1%}'
        frame(axes[1, column], view, title)
    handles = [Patch(color=colors[label], label=_name(view, label)) for label in shown]
    figure.legend(
        handles=handles, loc='outside lower center', ncols=min(7, len(shown)), frameon=False,
        fontsize=8,
    )  # fmt: skip
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


def _hatch(axis: Any, view: View, mask: Array) -> None:
    mask = _small(mask)
    if not mask.any():
        return
    (height, width), (rows, columns) = view.size, mask.shape
    x, y = ((np.arange(n) + 0.5) * m / n for n, m in ((columns, width), (rows, height)))
    if min(mask.shape) > 1:
        axis.contourf(x, y, mask, [0.5, 1.5], colors='none', hatches=['////'])


def _draw_detections(view: View, predictions: Mapping[str, Prediction]) -> Any:
    count = 1 + len(predictions)
    columns = min(count, 2 if view.size[1] > 1.2 * view.size[0] and count > 2 else 4)
    rows = -(-count // columns)
    known = view.boxes is not None
    figure = begin(
        rows * (panel(view, columns) + 0.35) + 0.3,
        'What does each model find?',
        f'Boxes with a score of at least {SCORE:g}'
        + (f'; right: of the same class as an object and IoU with it >= {IOU:g}' if known else ''),
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    draw_truth(axes[0], view, columns)
    frame(axes[0], view, 'picture and ground truth' if known else 'picture')
    for axis, (name, found) in zip(axes[1:], predictions.items(), strict=False):
        _draw_found(axis, view, name, found, columns)
    styles = [('right', STUDENT, '-'), ('wrong', MARK, '--'), ('missed', 'black', ':')]
    handles = [
        Patch(fill=False, ec=color, ls=style, lw=1.6, label=label)
        for label, color, style in (styles if known else [('found', STUDENT, '-')])
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False)
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
            overlay = np.zeros((*mask.shape, 4))
            overlay[mask] = to_rgba(STUDENT if right[index] else MARK, 0.35)
            axis.imshow(overlay, extent=(0, view.size[1], view.size[0], 0))
    for index in missed:
        assert view.boxes is not None
        _box(axis, view.boxes[index].tolist(), 'black', ':')
    tags = []
    for index, (box, label, score) in enumerate(
        zip(boxes[:DRAWN].tolist(), labels.tolist(), scores.tolist(), strict=False)
    ):
        color, style = (STUDENT, '-') if right[index] else (MARK, '--')
        _box(axis, box, color, style)
        text = f'{_name(view, label)} {100 * score:.0f}%'
        tags.append(Tag(box[0], box[1], text, colors=('white', color)))
    put_tags(axis, view, tags, columns)
    wrong = len(boxes) - sum(right)
    counts = f'{sum(right)} right, {wrong} wrong, {len(missed)} missed'
    counts = counts if view.boxes is not None else f'{len(boxes)} found'
    if len(boxes) > DRAWN:
        counts += f'; {DRAWN} drawn'
    frame(axis, view, f'{name}\n{counts}')


def _box(axis: Any, box: Sequence[float], color: str, style: str) -> None:
    x1, y1, x2, y2 = box
    above = 3 if style == '-' else 2
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, ls=style, lw=1.4, zorder=above)
    )


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


# ---- what each loss looks at


def draw_term(view: View, compared: Compared) -> Any:
    """Draw what the loss of a term looks at, in teacher and student.

    A loss that is not known here gets the mean activation of both, and their difference.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    with matplotlib.rc_context(STYLE):
        return of_loss(DRAWINGS, compared, _draw_activations)(view, compared)


def _present(view: View) -> list[int]:
    """The classes of the ground truth; all, if it is not known."""
    if view.segmentation is not None:
        found = _by_area(view.segmentation)
    elif view.labels is not None:
        found = sorted(set(view.labels.tolist()))
    else:
        found = []
    return [label for label in found if label < len(view.classes)] or [*range(len(view.classes))]


def _draw_cwd(view: View, compared: Compared) -> Any:
    """Channels as distributions over positions, where they differ most and least."""
    rows: list[tuple[int, int, float]] = []
    for level, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        apart = soft_kl(s.flatten(2), t.flatten(2), compared.loss(level).temperature, 2)
        kl = apart[0].tolist()
        known = _present(view) if compared.channels else [*range(len(kl))]
        # Background is nowhere in particular.
        known = [c for c in known if not compared.channels or _name(view, c) != 'background']
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
        draw_truth(axis[0], view, 5)
        frame(axis[0], view, '' if index else 'picture')
        name = compared.channels[channel] if compared.channels else str(channel)
        text = f'channel {"of class " if compared.channels else ""}{name}'
        axis[0].set_ylabel(text if single else f'level {level + 1}\n{text}', weight='bold')
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


def _draw_pixel_wise(view: View, compared: Compared) -> Any:
    """The class distributions at each position, and at the worst one bin by bin."""
    if compared.student[0].shape[1] < 2:
        return _draw_activations(view, compared)
    levels = [class_shares(compared, level) for level in range(len(compared.student))]
    level = max(range(len(levels)), key=lambda i: float(levels[i][2].mean()))
    ours, theirs, kl = levels[level]
    which = f'Level {level + 1} of {len(levels)}, where the loss is largest. '
    row, column = divmod(int(kl.argmax()), kl.shape[1])
    top = theirs.argmax(0, keepdim=True)
    figure = begin(
        panel(view, 4) + 3.0,
        'Which classes does each position get?',
        which
        * (len(levels) > 1)
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
    x, y, width, height = _cell(view, compared.student[level], row, column)
    for axis in (axes[0], axes[3]):
        _mark(axis, view, x + width / 2, y + height / 2, '')
    above.colorbar(sure, ax=axes[1:3], location='bottom', shrink=0.7, label='probability, %')
    above.colorbar(apart, ax=axes[3], location='bottom', label='nats', ticks=MaxNLocator(3))
    axis = below.subplots()
    at = torch.stack([theirs[:, row, column], ours[:, row, column]])
    largest = at.amax(0).argsort(descending=True)[:8].sort().values
    names = [compared.channels[c] if compared.channels else str(c) for c in largest.tolist()]
    for share, shift, color, who in zip(
        100 * at[:, largest], (-0.2, 0.2), (TEACHER, STUDENT), ('teacher', 'student'), strict=True
    ):
        axis.bar(np.arange(len(names)) + shift, share, 0.4, color=color, label=who)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel='probability, %', title='at the marked place: the most probable classes')
    axis.spines[['top', 'right']].set_visible(False)
    below.legend(loc='outside right upper', frameon=False)
    return figure


def _cell(view: View, maps: Tensor, row: int, column: int) -> tuple[float, float, float, float]:
    """Where a position of a map lies in the picture: left, top, width, height in pixels."""
    height, width = (n / m for n, m in zip(view.batch_shape, maps.shape[2:], strict=True))
    return column * width, row * height, width, height


def _mark(axis: Any, view: View, x: float, y: float, text: str) -> None:
    """Mark a place with a number, or with a ring."""
    height, width = view.size
    x, y = (min(max(v, 0.04 * n), 0.96 * n) for v, n in ((x, width), (y, height)))
    if text:
        axis.text(
            x, y, text, ha='center', va='center', fontsize=7, weight='bold', color='white',
            bbox=dict(facecolor=MARK, edgecolor='white', lw=0.8, pad=0.25, boxstyle='circle'),
        )  # fmt: skip
        return
    for color, thick in (('white', 3.4), (MARK, 1.8)):
        axis.plot(x, y, 'o', ms=12, mfc='none', mec=color, mew=thick)


def _draw_pair_wise(view: View, compared: Compared) -> Any:
    """Affinities of pooled nodes: of one node over the picture, and of all pairs."""
    found = [find_nodes(view, compared, level) for level in range(len(compared.student))]
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


def _draw_fgd(view: View, compared: Compared) -> Any:
    """Masks, attention, and their product, on each level."""
    levels = compared.teacher
    weights = compared.loss(0).weights
    alpha, beta = (1e3 * weights[name] for name in ('foreground', 'background'))
    figure = begin(
        len(levels) * (panel(view, 6) + 0.42) + 0.5,
        'FGD: which differences of the features count, and how much?',
        f'weight of a cell = ({alpha:g} × foreground + {beta:g} × background) × '
        "teacher's attention / 1000; attention to channels comes on top",
    )
    axes = figure.subplots(len(levels), 6, squeeze=False)
    gaps = figure.get_layout_engine()
    gaps.set(h_pad=0.06)
    for index, (row, maps) in enumerate(zip(axes, levels, strict=True)):
        focus = find_focus(compared, index)
        draw_truth(row[0], view, 6)
        draw_grid(
            row[0],
            view,
            np.linspace(0, view.batch_shape[0], maps.shape[2] + 1),
            np.linspace(0, view.batch_shape[1], maps.shape[3] + 1),
        )
        frame(row[0], view, '' if index else 'picture, boxes,\ncells')
        cell = round(view.batch_shape[0] / maps.shape[2])
        row[0].set_ylabel(f'level {index + 1}\ncells of {cell} px', weight='bold', fontsize=8)
        weight = (alpha * focus.foreground + beta * focus.background) * focus.teacher
        most = float(torch.maximum(focus.teacher, focus.student).max())
        for axis, values, title, high in (
            (row[1], focus.foreground, 'foreground\n1 / cells of the box', None),
            (row[2], focus.background, 'background\n1 / cells off boxes', None),
            (row[3], focus.teacher, "teacher's attention\nmean 1", most),
            (row[4], focus.student, "student's attention\nmean 1", most),
            (row[5], weight, 'weight of a cell\n× 1000', None),
        ):
            cmap = matplotlib.colormaps['viridis'].with_extremes(bad=NOTHING)
            image = paint(
                axis, view, np.ma.masked_equal(values.numpy(), 0), cmap=cmap, vmin=0, vmax=high
            )
            draw_boxes(axis, view, 'white')
            frame(axis, view, '' if index else title)
            axis.title.set_fontsize(8.5)
            if values.any():
                bar_below(figure, axis, image)
            else:
                axis.text(0.5, 0.5, 'none', ha='center', va='center', transform=axis.transAxes)
    return figure


def _distributions(maps: Sequence[Tensor], anchors: Sequence[int]) -> Tensor:
    """Logits of the distances, ``(A, 4, bins)``, over all levels."""
    levels = maps[len(anchors) : 2 * len(anchors)]
    return torch.cat(
        [
            m[0].flatten(1).T.reshape(m[0][0].numel() * k, 4, m.shape[1] // (4 * k))
            for m, k in zip(levels, anchors, strict=True)
        ]
    )


def _draw_ld(view: View, compared: Compared) -> Any:
    """The two regions on each level, and the distributions at one anchor."""
    targets = compared.needs['head_targets']
    anchors = check_maps(compared.student, compared.teacher, targets)
    main, region = targets.positive[0], region_weights(compared)
    points = centers(torch.cat(targets.priors))
    ours, theirs = (_distributions(m, anchors) for m in (compared.student, compared.teacher))
    apart = mean_kl(ours, theirs, temperature=1.0, dim=2).sum(1)
    inside = main if main.any() else region > 0
    chosen = int(torch.where(inside, apart, -1).argmax())
    level_of = torch.arange(len(anchors)).repeat_interleave(torch.tensor(targets.sizes))
    stride = targets.strides[int(level_of[chosen])]
    window = _window(view, targets.boxes[0], points[chosen], stride)
    zoomed = window != (0, 0, view.size[1], view.size[0])
    panels = len(anchors) + zoomed
    columns = 3 if panels > 2 else panels
    rows = -(-panels // columns)
    side = 0.8 * WIDTH / columns * (window[3] - window[1]) / (window[2] - window[0])
    heights = rows * (min(side, 3.2) + 0.3) + 0.6, 2.6
    settings = compared.loss(0).settings
    vlr = settings['region'] == 'vlr'
    if not vlr:
        other = 'Region inside: other anchors with their centre in a box.'
    else:
        other = 'Valuable localization region (VLR): anchors that fit a box less well. '
        other += 'An anchor may be both.' * settings['vlr_on_positives']
    figure = begin(
        sum(heights) + 0.1,
        'LD: which anchors count, and what is compared there?',
        f"Main region: the head's positives. {other} "
        + 'Shown: around the object where student and teacher differ most.' * zoomed,
    )
    above, below = figure.subfigures(
        2, 1, height_ratios=(rows * (min(side, 3.2) + 0.3) + 0.6, 2.6)
    )
    axes = above.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[panels:]:
        axis.set_visible(False)
    if zoomed:
        draw_truth(axes[0], view, 3)
        _box(axes[0], window, MARK, '-')
        frame(axes[0], view, 'picture; marked: what is shown')
    x, y = points.T.numpy()
    for level, axis in enumerate(axes[zoomed:panels]):
        here = (level_of == level).numpy()
        paint_image(axis, view, grey=True)
        draw_boxes(axis, view)
        if not zoomed:
            name_boxes(axis, view, 3)
        # As large as the anchors are apart, or a little less.
        dot = 72 * 0.27 * WIDTH * targets.strides[level] / (window[2] - window[0])
        dot = min(max(0.75 * dot, 1.0), 6.5)
        axis.plot(
            x[here], y[here], 'k.', ms=min(2.5, dot), label='other anchors (centres)',
            clip_on=zoomed,
        )  # fmt: skip
        valuable = here & (region > 0).numpy()
        dots = axis.scatter(
            x[valuable], y[valuable], c=region[valuable], s=dot**2, vmin=0,
            vmax=max(region.max().item(), 1e-9), zorder=3, clip_on=zoomed,
        )  # fmt: skip
        positive = here & main.numpy()
        axis.plot(
            x[positive], y[positive], 'o', ms=1.4 * dot, mfc='none', mec=MARK,
            mew=min(2, dot / 3), label='main region', zorder=4, clip_on=zoomed,
        )  # fmt: skip
        axis.plot([], [], 'o', ms=6.5, color=dots.cmap(0.7), label='VLR' if vlr else 'inside')
        if here[chosen]:
            axis.plot(
                x[chosen], y[chosen], 's', ms=max(2.6 * dot, 8), mfc='none', mec='black', mew=2,
                zorder=5, label='shown below',
            )  # fmt: skip
        frame(axis, view, f'level {level + 1}: one anchor every {targets.strides[level]} px')
        axis.set(xlim=window[::2], ylim=window[:0:-2])
        for artist in (*axis.lines, dots):  # without points they would lie at 0, 0
            artist.set_in_layout(False)
    label = 'weight in the VLR: IoU with the box' if vlr else "weight: the student's score"
    above.colorbar(dots, ax=[*axes[:panels]], shrink=0.8, pad=0.02, label=label)
    handles = {
        text: h for a in above.axes for h, text in zip(*a.get_legend_handles_labels(), strict=True)
    }
    above.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=4, frameon=False
    )
    if inside.any():
        _draw_sides(below, targets, chosen, stride, theirs[chosen], ours[chosen])
    else:
        below.suptitle('no object in this picture: no box is compared', fontsize=9.5)
    return figure


def _window(
    view: View, boxes: Tensor, point: Tensor, stride: int
) -> tuple[float, float, float, float]:
    """The part of a picture in which single anchors can be seen: x1, y1, x2, y2."""
    height, width = view.size
    if max(view.size) <= 160 or not len(boxes):
        return 0, 0, width, height
    box = min(boxes, key=lambda b: float((centers(b) - point).norm()))
    half = max(float((box[2:] - box[:2]).max()) * 0.9, 6 * stride, 48)
    x, y = centers(box).tolist()
    return max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height)


def _draw_sides(
    figure: Any, targets: Any, chosen: int, stride: int, theirs: Tensor, ours: Tensor
) -> None:
    """The distributions of the four sides at one anchor."""
    point = centers(torch.cat(targets.priors))[chosen]
    boxes = targets.boxes[0]
    box = min(boxes, key=lambda b: float((centers(b) - point).norm()), default=None)
    bins = stride * np.arange(ours.shape[1])
    figure.suptitle(
        f'predicted at the marked anchor: distance of each side of the box, {len(bins)} bins',
        fontsize=9.5,
    )
    axes = figure.subplots(1, 4, sharey=True)
    for side, axis in enumerate(axes):
        for maps, shift, color, who in (
            (theirs, -0.2, TEACHER, 'teacher'),
            (ours, 0.2, STUDENT, 'student'),
        ):
            share = 100 * maps[side].softmax(0)
            axis.bar(bins + shift * stride, share, 0.4 * stride, color=color, label=who)
        if box is not None:
            true = torch.cat([point - box[:2], box[2:] - point])[side].item()
            axis.axvline(true, color='black', ls='--', lw=1, label='ground truth')
        name = ('left', 'top', 'right', 'bottom')[side]
        axis.set(title=name, xlabel='distance, px', xticks=bins[:: max(2, len(bins) // 4)])
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('probability, %')
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False
    )


def _draw_intrakd(view: View, compared: Compared) -> Any:
    """Areas of the classes, and how alike their features are."""
    labels, masks, ours, theirs = find_regions(compared, 0)
    if not labels:
        return _draw_activations(view, compared)
    names = [_name(view, label).replace('background', 'backgr.') for label in labels]
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
    axes = above.subplots(rows, across, squeeze=False).ravel()
    for axis in axes[columns:]:
        axis.set_visible(False)
    draw_truth(axes[0], view, across)
    frame(axes[0], view, 'picture')
    for axis, label, area, name in zip(axes[1:], labels, masks, names, strict=False):
        paint_image(axis, view, grey=True)
        colors = np.zeros((*area.shape, 4))
        colors[:] = to_rgba(STUDENT)
        colors[..., 3] = 0.6 * area
        paint(axis, view, colors)
        outline(axis, view, label)
        frame(axis, view, f'area of {name}')
    axes = below.subplots(3, 3)
    squares = (ours - theirs) ** 2
    numbers = '.2f' if len(names) < 7 else ''
    low = min(ours.min(), theirs.min())
    for column, moment in enumerate(('mean', 'variance', 'skewness')):
        for row, (values, who) in enumerate(((theirs, 'teacher'), (ours, 'student'))):
            title = f'{moment}: {who}'
            image = draw_matrix(
                axes[row, column], values[column], names, title, numbers, vmin=low, vmax=1
            )
        apart = draw_matrix(
            axes[2, column], squares[column], names, f'{moment}: squared difference', numbers,
            vmin=0, vmax=squares.max(), cmap='cividis',
        )  # fmt: skip
    below.colorbar(image, ax=axes[:2], shrink=0.8, label='affinity (cosine)')
    below.colorbar(apart, ax=axes[2], label='(difference)²; loss:\nthe mean of all')
    return figure


def _draw_attention(view: View, compared: Compared) -> Any:
    """Where the activation of all channels together lies."""
    rows = [attention_shares(compared, level) for level in range(len(compared.student))]
    norm = compared.loss(0).norm
    how = 'norm 1' if norm == 'l2' else 'a softmax over the positions'
    return _draw_maps(
        view,
        compared.teacher,
        rows,
        'IntRA-KD, attention maps: where is the activation?',
        f'The squares of all channels, summed at each position, with {how} over the picture.',
        'share of a position',
    )


def _draw_activations(view: View, compared: Compared) -> Any:
    """What can be shown of any loss: the mean activation of both, and their difference."""
    loss = compared.loss(0)
    flat = [x for x in compared.student if x.dim() != 4]
    if flat:
        figure = begin(1.0, type(loss).__name__, f'compares tensors {tuple(flat[0].shape)}')
        figure.text(0.5, 0.3, 'not a map (N, C, H, W): nothing to draw', ha='center')
        return figure
    text = f'{type(loss).__name__} compares these maps. Shown is the mean over their channels.'
    if isinstance(loss, HolisticLoss):
        scores = []
        for x in (compared.teacher[0], compared.student[0]):
            with torch.no_grad():
                scores.append(float(copy.deepcopy(loss.critic).eval()(x)))
        text += f' Score of the critic: teacher {scores[0]:.3g}, student {scores[1]:.3g}.'
    rows = [mean_activation(compared, level) for level in range(len(compared.student))]
    title = 'Where are student and teacher active?'
    return _draw_maps(view, compared.teacher, rows, title, text, 'mean activation')


def _draw_maps(
    view: View,
    maps: Sequence[Tensor],
    rows: Sequence[tuple[Tensor, Tensor]],
    title: str,
    subtitle: str,
    unit: str,
) -> Any:
    """One map of each model on every level, and their difference."""
    figure = begin(len(rows) * (panel(view, 4) + 0.65) + 0.2, title, subtitle)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for index, (row, (ours, theirs)) in enumerate(zip(axes, rows, strict=True)):
        draw_truth(row[0], view, 4)
        frame(row[0], view, '' if index else 'picture')
        row[0].set_ylabel(_level(index, len(rows), view, maps[index]), weight='bold')
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


def _draw_imitation(view: View, compared: Compared) -> Any:
    """The positions whose features are imitated on each level, and how far apart they are."""
    loss = compared.loss(0)
    figure = begin(
        len(compared.student) * (panel(view, 4) + 0.65) + 0.2,
        'LD, imitation: which positions are imitated?',
        f"Squared differences of the features count in the region '{loss.region}' alone.",
    )
    axes = figure.subplots(len(compared.student), 4, squeeze=False)
    shares = imitation_shares(compared)
    for index, (row, share) in enumerate(zip(axes, shares, strict=True)):
        s, t = compared.student[index][0], compared.teacher[index][0]
        squares = (s - t).square().mean(0)
        draw_truth(row[0], view, 4)
        frame(row[0], view, '' if index else 'picture')
        label = _level(index, len(shares), view, compared.student[index])
        row[0].set_ylabel(label, weight='bold')
        paint_image(row[1], view, grey=True)
        colors = np.zeros((*share.shape, 4))
        colors[:] = to_rgba(STUDENT)
        colors[..., 3] = 0.6 * (share > 0)
        paint(row[1], view, colors)
        draw_boxes(row[1], view)
        frame(row[1], view, '' if index else f"region '{loss.region}'")
        cmap = matplotlib.colormaps['cividis'].with_extremes(bad=NOTHING)
        inside = np.ma.masked_where((share == 0).numpy(), squares.numpy())
        high = float(squares.max())
        for axis, values, title in (
            (row[2], squares, 'squared difference'),
            (row[3], inside, 'of it counts'),
        ):
            image = paint(axis, view, values, cmap=cmap, vmin=0, vmax=high)
            draw_boxes(axis, view, 'white')
            frame(axis, view, '' if index else title)
        figure.colorbar(
            image, ax=[*row[2:]], location='bottom', shrink=0.7, aspect=20,
            label='(difference)², mean over channels',
        )  # fmt: skip
    return figure


DRAWINGS: dict[type, Callable[[View, Compared], Any]] = {
    CWDLoss: _draw_cwd,
    PixelWiseLoss: _draw_pixel_wise,
    PairWiseLoss: _draw_pair_wise,
    FGDLoss: _draw_fgd,
    LDLoss: _draw_ld,
    LDImitationLoss: _draw_imitation,
    IntRALoss: _draw_intrakd,
    AttentionMapLoss: _draw_attention,
}


# ---- where student and teacher still differ


def draw_differences(view: View, found: Mapping[str, Differences]) -> Any:
    """Draw where the loss of a term comes from, for each student, and mark the worst places.

    Args:
        view: The picture.
        found: By the name of the student; the one to look at comes last.
    """
    with matplotlib.rc_context(STYLE):
        return _draw_differences(view, found)


def _draw_differences(view: View, found: Mapping[str, Differences]) -> Any:
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
        draw_truth(row[0], view, shown)
        frame(row[0], view, '' if index else 'picture')
        if count > 1:
            row[0].set_ylabel(f'level {index + 1}', weight='bold')
        for axis, one, (name, difference) in zip(row[1:], values, found.items(), strict=False):
            image = paint(axis, view, one, vmin=0, vmax=high, cmap='cividis')
            outline(axis, view)
            title = f'{name}\nloss of the term: {difference.value:.3g}'
            frame(axis, view, '' if index else title)
        height, width = values[-1].shape
        for number, (y, x) in enumerate(_worst(values[-1]), 1):
            at = (x + 0.5) * view.batch_shape[1] / width, (y + 0.5) * view.batch_shape[0] / height
            for axis in (row[0], row[columns - 1]):
                _mark(axis, view, *at, str(number))
        if not any(one.any() for one in values):
            row[-1].text(
                0.5, 0.5, 'none', ha='center', color='white', transform=row[-1].transAxes,
                bbox=dict(facecolor='black', edgecolor='none'),
            )  # fmt: skip
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
