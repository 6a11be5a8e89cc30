"""What all drawings share: the figure, its colours, the picture and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from kd_dense.mm.pictures.views import UNLABELLED, Array, View

__all__ = ['pixels_of', 'save']

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
TAGGED = 12  # names in one picture, at most


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


def subplots(figure: Any, rows: int, columns: int, count: int) -> Any:
    """Make so many axes, row by row; the rest of the last row stays empty."""
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes[:count]


def legend_below(figure: Any, handles: Sequence[Any], columns: int, **options: Any) -> None:
    """Say at the bottom of a figure what its colours stand for."""
    figure.legend(
        handles=handles, loc='outside lower center', ncols=columns, frameon=False, **options
    )


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
    axis.set_aspect('equal', anchor='N')  # level with others that have a scale below


def paint(axis: Any, view: View, values: Any, **options: Any) -> Any:
    """Paint a map at the size of the batch that it shows."""
    height, width = view.batch_shape
    return axis.imshow(
        np.asanyarray(values), extent=(0, width, height, 0), interpolation='nearest', **options
    )


def say_none(axis: Any) -> None:
    """Say that nothing is shown where a map is empty."""
    axis.text(
        0.5, 0.5, 'none', ha='center', va='center', color='white', transform=axis.transAxes,
        bbox=dict(facecolor='black', edgecolor='none'),
    )  # fmt: skip


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
        labels = thinned(view.segmentation)
        x, y = middles(view, labels)
        known = by_area(labels)
        thin = 1.0 if len(known) < 8 else 0.5
        for label in known[1:] if only is None else [only]:
            for color, thick in (('black', 2.0), ('white', 0.9)):
                mask = labels == label
                axis.contour(x, y, mask, [0.5], colors=color, linewidths=thin * thick)
    elif view.boxes is not None:
        draw_boxes(axis, view, 'white')


def thinned(labels: Array, most: int = 256) -> Array:
    """A label map with at most so many pixels a side: lines need no more."""
    step = max(1, -(-max(labels.shape) // most))
    return labels[step // 2 :: step, step // 2 :: step]


def middles(view: View, labels: Array) -> tuple[Array, Array]:
    """Where the columns and rows of a label map lie in the picture, in pixels."""
    (height, width), (rows, columns) = view.size, labels.shape
    return (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows


def by_area(labels: Array) -> list[int]:
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
        (x, y, *_), text = view.boxes[index].tolist(), name_of(view, labels[index])
        beside = len(text) <= 3 and x > 0.08 * width  # there is room for a short name
        if beside:
            tags.append(Tag(x - 0.01 * width, y, text, 'right', 'top'))
        else:
            tags.append(Tag(x, y, text))
    put_tags(axis, view, tags, columns)


def name_areas(axis: Any, view: View, labels: Array, columns: int) -> None:
    """Write the name of its class on each large area of a label map, or beside a thin one."""
    labels = thinned(labels)
    (height, width), (rows, cells) = view.size, labels.shape
    found = []
    for label in by_area(labels):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=8
        )
        for part in range(1, count):
            area = stats[part, cv2.CC_STAT_AREA]
            if area >= 0.004 * labels.size and name_of(view, label) != 'background':
                found.append((area, label, parts == part, stats[part]))
    tags = []
    for _, label, mask, (left, top, *_) in sorted(found, key=lambda one: -one[0]):
        padded = np.pad(mask.astype(np.uint8), 1)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        if depth.max() < 0.09 * min(labels.shape) and len(name_of(view, label)) <= 3:
            at = left * width / cells - 0.01 * width, top * height / rows, 'right', 'top'
        else:
            x, y = (column + 0.5) * width / cells, (row + 0.5) * height / rows
            at = x, y, 'center', 'center'
        tags.append(Tag(*at[:2], name_of(view, label), *at[2:]))
    put_tags(axis, view, tags, columns)


def name_of(view: View, label: int) -> str:
    """The name of a class."""
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


def cell_size(view: View, maps: Tensor) -> str:
    """How large the positions of a map are."""
    return f'cells of {round(view.batch_shape[0] / maps.shape[2])} px'


def level_name(index: int, count: int, view: View, maps: Tensor) -> str:
    """Which map a row shows, where there are several."""
    cells = cell_size(view, maps)
    return f'level {index + 1}\n{cells}' if count > 1 else cells


def begin_row(axis: Any, view: View, columns: int, index: int, label: str) -> None:
    """Show the picture at the beginning of a row, with a title in the first one."""
    draw_truth(axis, view, columns)
    frame(axis, view, '' if index else 'picture')
    axis.set_ylabel(label, weight='bold')


def tint(axis: Any, view: View, share: Tensor) -> None:
    """Colour the positions of a map, each as strongly as its share, on the picture in grey."""
    paint_image(axis, view, grey=True)
    colors = np.zeros((*share.shape, 4))
    colors[:] = to_rgba(STUDENT)
    colors[..., 3] = 0.6 * share
    paint(axis, view, colors)


def mark(
    axis: Any, view: View, shape: Sequence[int], row: int, column: int, text: str = ''
) -> None:
    """Mark a position of a map ``(H, W)`` with a number, or with a ring."""
    height, width = view.size
    x = (column + 0.5) * view.batch_shape[1] / shape[1]
    y = (row + 0.5) * view.batch_shape[0] / shape[0]
    x, y = (min(max(v, 0.04 * n), 0.96 * n) for v, n in ((x, width), (y, height)))
    if text:
        axis.text(
            x, y, text, ha='center', va='center', fontsize=7, weight='bold', color='white',
            bbox=dict(facecolor=MARK, edgecolor='white', lw=0.8, pad=0.25, boxstyle='circle'),
        )  # fmt: skip
        return
    for color, thick in (('white', 3.4), (MARK, 1.8)):
        axis.plot(x, y, 'o', ms=12, mfc='none', mec=color, mew=thick)


def draw_box(axis: Any, box: Sequence[float], color: str, style: str) -> None:
    """Draw one box."""
    x1, y1, x2, y2 = box
    above = 2 if style == '-' else 3  # between dashes the one below shows
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, ls=style, lw=1.4, zorder=above)
    )
