"""What dense heads predict: how sure both are of an object, and where they disagree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import ADLLoss, BCKDLoss, CrossKDLoss, PGDBoxLoss, PGDClassLoss
from kd_dense.losses.ld.head_targets import anchors_of
from kd_dense.losses.ld.ld import largest_score
from kd_dense.losses.predictions.adl import adl_rows
from kd_dense.losses.predictions.bckd import bckd_rows
from kd_dense.losses.predictions.crosskd import crosskd_rows
from kd_dense.losses.predictions.pgd import box_parts, class_parts
from kd_dense.mm.pictures.canvas import (
    begin,
    begin_row,
    frame,
    level_name,
    outline,
    paint,
    panel,
)
from kd_dense.mm.pictures.general import Known, LossPictures, by_position, draw_maps
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View
from kd_dense.mm.randomness import kept_random_state

__all__ = ['PICTURES', 'draw_key_regions', 'draw_predictions']


def draw_predictions(view: View, compared: Compared) -> Any:
    """Draw how probable the likeliest class of each position is, in both heads.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    targets = compared.needs['head_targets']
    anchors = anchors_of(compared.student, compared.teacher, targets, kinds=1)
    levels = len(anchors)
    ours, theirs = (
        _by_position(largest_score(maps[:levels], anchors), compared, torch.amax)
        for maps in (compared.student, compared.teacher)
    )
    crossed = isinstance(compared.loss(0), CrossKDLoss)
    note = " The student's is what the teacher's head makes of its features."
    return draw_maps(
        view,
        compared.teacher[:levels],
        [(100 * s, 100 * t) for s, t in zip(ours, theirs, strict=True)],
        'Where do student and teacher see an object?',
        f'{type(compared.loss(0)).__name__} compares the probability of each class by itself, at '
        'all positions. Shown is the likeliest class of each.' + note * crossed,
        'probability, %',
    )


def _by_position(rows: Tensor, compared: Compared, reduce: Any) -> list[Tensor]:
    return by_position(rows, compared.needs['head_targets'].sizes, compared.student, reduce)


def _shares(compared: Compared) -> list[Tensor]:
    loss = compared.loss(0)
    targets = compared.needs['head_targets']
    both: Any = (compared.student, compared.teacher, targets)
    if isinstance(loss, ADLLoss):
        rows = adl_rows(*both, **loss.settings)
    else:
        rows_of = crosskd_rows if isinstance(loss, CrossKDLoss) else bckd_rows
        arguments: Any = (*both, compared.needs['head_boxes'])
        parts = rows_of(*arguments, **loss.settings)
        none = torch.zeros_like(torch.cat(targets.label_weights, 1))
        rows = sum(parts.values(), none)
    return _by_position(loss.weight * rows, compared, torch.sum)


def draw_key_regions(view: View, compared: Compared) -> Any:
    """Draw the key regions on each level, the teacher's activation there, and what differs.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = len(compared.student)
    figure = begin(
        levels * (panel(view, 4) + 0.65) + 0.2,
        'PGD: where are the predictions of the teacher best?',
        'Key regions: for each object a Gaussian around the positions whose prediction, by class '
        'and box, is best. There the features of a tower are compared.',
    )
    axes = figure.subplots(levels, 4, squeeze=False)
    regions, shares = _regions(compared), _guided_shares(compared)
    for index, (row, region, share) in enumerate(zip(axes, regions.weights, shares, strict=True)):
        begin_row(row[0], view, 4, index, level_name(index, levels, view, compared.teacher[index]))
        titles = ('key region', 'teacher,\nmean |activation|', 'adds to\nthe loss')
        shown = (region[0], compared.teacher[index][0].abs().mean(0), share)
        tops: tuple[Any, ...] = (1, None, None)
        for axis, values, title, top in zip(row[1:], shown, titles, tops, strict=True):
            image = paint(axis, view, values, vmin=0, vmax=top)
            figure.colorbar(image, ax=axis, location='bottom', aspect=12, format='%.1g')
            outline(axis, view)
            frame(axis, view, '' if index else title)
    return figure


def _regions(compared: Compared) -> Any:
    """With centres moved in the same way whenever this is called."""
    with kept_random_state(), torch.no_grad():
        torch.manual_seed(0)
        return compared.loss(0).regions(compared.teacher, **compared.needs)


def _guided_shares(compared: Compared) -> list[Tensor]:
    loss = compared.loss(0)
    both = compared.student, compared.teacher, _regions(compared)
    if isinstance(loss, PGDBoxLoss):
        parts = box_parts(*both, **loss.settings)
        found = parts['foreground']
    else:
        parts = class_parts(*both, **{k: v for k, v in loss.settings.items() if k != 'attention'})
        found = [a + b for a, b in zip(*parts.values(), strict=True)]
    return [loss.weight * level[0] for level in found]


_GUIDED = LossPictures(
    draw_key_regions, _guided_shares, 'the part of the features, without attention'
)
_LOSS = LossPictures(draw_predictions, _shares, 'the loss of all priors of a position')
PICTURES: dict[type, Known] = {
    ADLLoss: _LOSS,
    BCKDLoss: _LOSS,
    CrossKDLoss: _LOSS,
    PGDBoxLoss: _GUIDED,
    PGDClassLoss: _GUIDED,
}
