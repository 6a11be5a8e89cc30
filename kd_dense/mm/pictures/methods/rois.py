"""Shared RoIs: where student and teacher judge the same regions differently."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import RoIBoxLoss
from kd_dense.losses.rois import offsets_apart, offsets_of_objects
from kd_dense.mm.pictures.canvas import (
    COLORS,
    MARK,
    STUDENT,
    TEACHER,
    begin,
    draw_box,
    draw_boxes,
    draw_truth,
    frame,
    legend_below,
    name_of,
    outline,
    paint,
    panel,
    say_none,
)
from kd_dense.mm.pictures.general import ANY, Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_rois', 'on_rois']

REGIONS = (MARK, COLORS[2], COLORS[6])  # colours of the regions that are looked at
BARS = 6  # classes of each
CELLS = 64  # in each direction: what a region adds to the loss is spread over those of its box
OVERLAP = 0.3  # of two regions that are looked at, at most


def draw_rois(known: Known, view: View, compared: Compared) -> Any:
    """Draw where the models differ, and what they say of the regions where they differ most.

    Args:
        known: The pictures of the loss on a map.
        view: The picture.
        compared: What the term compares there.
    """
    rois = compared.rois
    assert rois is not None
    values = _values(known, compared)
    height = panel(view, 3) + 0.8
    figure = begin(
        height + 2.3,
        'Shared RoIs: where do student and teacher disagree?',
        f"Both models look at the student's {len(values)} regions of interest. Bright: in many "
        'regions, or far apart. Marked: the regions in which they are furthest apart.',
    )
    above, below = figure.subfigures(2, 1, height_ratios=(height, 2.3))
    axes = above.subplots(1, 3)
    draw_truth(axes[0], view, 3)
    frame(axes[0], view, 'picture')
    image = paint(axes[1], view, _spread(values, rois.boxes), cmap='cividis', vmin=0)
    outline(axes[1], view)
    frame(axes[1], view, 'disagreement')
    above.colorbar(image, ax=axes[1], location='bottom', aspect=14, label='share of the loss')
    paint(axes[2], view, _spread(torch.ones_like(values), rois.boxes), cmap='gray')
    draw_boxes(axes[2], view)
    frame(axes[2], view, 'where regions lie')
    worst = _worst(values, rois.boxes)
    if not worst:
        say_none(axes[1])
        below.suptitle('no region in which something differs', fontsize=9.5)
        return figure
    rows, columns = view.batch_shape
    for color, index in zip(REGIONS, worst, strict=False):
        box = (rois.boxes[index] * torch.tensor([columns, rows] * 2)).tolist()
        for axis in axes[1:]:
            draw_box(axis, box, 'white', '-')
            draw_box(axis, box, color, '--')
    _draw_bars(below, view, compared, worst)
    return figure


def _draw_bars(figure: Any, view: View, compared: Compared, worst: list[int]) -> None:
    """What both say of each region."""
    assert compared.rois is not None
    boxes = isinstance(compared.loss(0), RoIBoxLoss)
    axes = figure.subplots(1, len(worst), squeeze=False)[0]
    for axis, color, index in zip(axes, REGIONS, worst, strict=False):
        ours, theirs, labels = _offsets(compared, index) if boxes else _rows(view, compared, index)
        places = torch.arange(len(labels))
        for values, shift, shade, who in (
            (theirs, -0.2, TEACHER, 'teacher'),
            (ours, 0.2, STUDENT, 'student'),
        ):
            axis.bar(places + shift, values, 0.4, color=shade, label=who)
        axis.set_xticks(places, labels, rotation=30 if boxes or len(labels) > 3 else 0)
        label = int(compared.rois.labels[index])
        axis.set_title(f'region of: {_name(view, compared, label)}', color=color)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('offset' if boxes else 'probability, %' if _classes(compared) else 'value')
    legend_below(figure, axes[0].get_legend_handles_labels()[0], 2)


def _offsets(compared: Compared, index: int) -> tuple[Tensor, Tensor, list[str]]:
    ours, theirs, _ = offsets_of_objects(
        compared.student[0], compared.teacher[0], compared.needs['segmentation'],
        compared.loss(0).num_classes,
    )  # fmt: skip
    return ours[index], theirs[index], ['x', 'y', 'width', 'height']


def _rows(view: View, compared: Compared, index: int) -> tuple[Tensor, Tensor, list[str]]:
    """The likeliest classes; of anything else the numbers that differ most."""
    ours, theirs = (x[0][index].flatten() for x in (compared.student, compared.teacher))
    if not _classes(compared):
        chosen = (ours - theirs).abs().topk(min(BARS, len(ours))).indices.sort().values
        return ours[chosen], theirs[chosen], [str(i) for i in chosen.tolist()]
    ours, theirs = (100 * x.softmax(0) for x in (ours, theirs))
    chosen = torch.maximum(ours, theirs).topk(min(BARS, len(ours))).indices.sort().values
    return ours[chosen], theirs[chosen], [_name(view, compared, i) for i in chosen.tolist()]


def _classes(compared: Compared) -> bool:
    """Whether rows are class logits: those of a loss of class distributions."""
    return compared.student[0].dim() == 2 and hasattr(compared.loss(0), 'standardise')


def _name(view: View, compared: Compared, label: int) -> str:
    """Of a class; the background comes behind them all."""
    width = compared.student[0].shape[1] - 1 if _classes(compared) else None
    behind = len(view.classes) if width is None else width
    return 'background' if label >= behind else name_of(view, label)


def _values(known: Known, compared: Compared) -> Tensor:
    """What each region adds to the loss, or to the parts that the pictures of a loss name."""
    s, t = compared.student[0], compared.teacher[0]
    if s.dim() != 2:
        return (s - t).square().flatten(1).mean(1)
    if isinstance(compared.loss(0), RoIBoxLoss):
        loss = compared.loss(0)
        apart, of_object = offsets_apart(
            s, t, compared.needs['segmentation'], loss.num_classes, loss.beta
        )
        mean: Tensor = apart.where(of_object, 0) / of_object.sum().clamp(min=1)
        return loss.weight * mean  # type: ignore[no-any-return]
    # Rows as the positions of a map, for which the losses of this form have pictures.
    image = compared._replace(
        student=[s.T[None, :, :, None]],
        teacher=[t.T[None, :, :, None]],
        needs={name: labels[None, :, None] for name, labels in compared.needs.items()},
        rois=None,
    )
    pictures = known(image) if callable(known) else known
    shares = pictures.shares(image)
    return shares[0].flatten() if shares else torch.zeros(len(s))


def _spread(values: Tensor, boxes: Tensor) -> Tensor:
    """A map ``(CELLS, CELLS)`` of the batch: each value spread over the cells of its box."""
    middles = (torch.arange(CELLS) + 0.5) / CELLS
    first, last = (boxes[:, i : i + 2].clamp(0, 1) for i in (0, 2))
    # At least the cell of its centre.
    centre = ((first + last) / 2).mul(CELLS).long().clamp(max=CELLS - 1)
    inside = (middles >= first[..., None]) & (middles < last[..., None])
    inside = (inside | (torch.arange(CELLS) == centre[..., None])).to(values.dtype)
    columns, rows = inside.unbind(1)
    share = values / (columns.sum(1) * rows.sum(1))
    return torch.einsum('r,ry,rx->yx', share, rows, columns)


def _worst(values: Tensor, boxes: Tensor) -> list[int]:
    """The regions with the largest values that hardly overlap."""
    found: list[int] = []
    for index in values.argsort(descending=True).tolist():
        if values[index] <= 0 or len(found) == len(REGIONS):
            break
        if all(_overlap(boxes[index], boxes[other]) <= OVERLAP for other in found):
            found.append(index)
    return found


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes."""
    inner = (torch.minimum(a, b)[2:] - torch.maximum(a, b)[:2]).clamp(min=0).prod()
    areas = [(x[2:] - x[:2]).prod() for x in (a, b)]
    return float(inner / (sum(areas) - inner).clamp(min=1e-9))


def _shares(known: Known, compared: Compared) -> list[Tensor]:
    assert compared.rois is not None
    return [_spread(_values(known, compared), compared.rois.boxes)]


def on_rois(known: Known) -> LossPictures:
    """The pictures of a loss whose term is on shared RoIs.

    Args:
        known: Its pictures on a map.
    """
    what = 'what the regions add to the loss, spread over their boxes'
    return LossPictures(partial(draw_rois, known), partial(_shares, known), what)


PICTURES: dict[type, Known] = {RoIBoxLoss: ANY}
