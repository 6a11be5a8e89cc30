"""What dense heads predict: how sure both are of an object, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import ADLLoss, BCKDLoss
from kd_dense.losses.ld import largest_score
from kd_dense.losses.predictions.adl import adl_rows
from kd_dense.losses.predictions.bckd import bckd_rows
from kd_dense.losses.predictions.heads import anchors_of
from kd_dense.mm.pictures.general import Known, LossPictures, draw_maps
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_predictions']


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
    return draw_maps(
        view,
        compared.teacher[:levels],
        [(100 * s, 100 * t) for s, t in zip(ours, theirs, strict=True)],
        'Where do student and teacher see an object?',
        f'{type(compared.loss(0)).__name__} compares the probability of each class by itself, at '
        'all positions. Shown is the likeliest class of each.',
        'probability, %',
    )


def _by_position(rows: Tensor, compared: Compared, reduce: Any) -> list[Tensor]:
    """Maps ``(H, W)`` of values of priors ``(1, A)``, of each level."""
    targets = compared.needs['head_targets']
    found = []
    for level, values in enumerate(rows.split(targets.sizes, 1)):
        height, width = compared.student[level].shape[-2:]
        found.append(reduce(values[0].view(height, width, -1), 2))
    return found


def _shares(compared: Compared) -> list[Tensor]:
    loss = compared.loss(0)
    targets = compared.needs['head_targets']
    both: Sequence[Any] = (compared.student, compared.teacher, targets)
    if isinstance(loss, ADLLoss):
        rows = adl_rows(*both, **loss.settings)
    else:
        parts = bckd_rows(*both, compared.needs['head_boxes'], **loss.settings)
        none = torch.zeros_like(torch.cat(targets.label_weights, 1))
        rows = sum(parts.values(), none)
    return _by_position(loss.weight * rows, compared, torch.sum)


_LOSS = LossPictures(draw_predictions, _shares, 'the loss of all priors of a position')
PICTURES: dict[type, Known] = {ADLLoss: _LOSS, BCKDLoss: _LOSS}
