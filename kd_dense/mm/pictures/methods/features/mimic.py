"""Mimicry: the two maps as they are compared, and where they differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import (
    CosineLoss,
    FBKDLoss,
    FitNetsLoss,
    FTLoss,
    MimicLoss,
    NFDLoss,
    PKDLoss,
    VkDLoss,
)
from kd_dense.losses.features.mimic.mimic import DISTANCES, normed
from kd_dense.losses.fgd.fgd import spatial_attention
from kd_dense.mm.pictures.canvas import begin, begin_row, frame, level_name, outline, paint, panel
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_focus', 'draw_mimic', 'mimic_shares']

NORMS = {
    'none': 'the features as they are',
    'batch': 'each channel less its mean, over its standard deviation (here of this picture)',
    'image': 'each channel of a picture less its mean, over its standard deviation',
    'map': "the features over the length of a picture's whole map",
    'position': 'the features at each position over the length of their vector',
}


def draw_mimic(view: View, compared: Compared) -> Any:
    """Draw the channel that differs most on each level, as it is and as it is compared.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels, shares = len(compared.student), mimic_shares(compared)
    norm = compared.loss(0).norm
    columns = 4 if norm == 'none' else 6
    figure = begin(
        levels * (panel(view, columns) + 0.65) + 0.2,
        'Are the features alike, position by position?',
        f'Compared: {NORMS[norm]}. Shown: the channel that differs most; on the right '
        'what each position adds to the loss, all channels together.',
    )
    axes = figure.subplots(levels, columns, squeeze=False)
    for index, (row, share) in enumerate(zip(axes, shares, strict=True)):
        theirs, ours = compared.teacher[index][0], compared.student[index][0]
        compared_as = [x[0].float() for x in _normed(compared, index)]
        channel = int((compared_as[0] - compared_as[1]).abs().mean((1, 2)).argmax())
        label = level_name(index, levels, view, compared.teacher[index])
        begin_row(row[0], view, columns, index, f'{label}\nchannel {channel}')
        pairs = [('', theirs, ours)]
        if norm != 'none':
            pairs.append(('\nas compared', compared_as[1], compared_as[0]))
        for at, (how, t, s) in enumerate(pairs):
            two = row[1 + 2 * at : 3 + 2 * at]
            low, high = (float(f(x)) for f, x in _limits(t[channel], s[channel]))
            for axis, values, who in zip(two, (t, s), ('teacher', 'student'), strict=True):
                image = paint(axis, view, values[channel], vmin=low, vmax=high)
                outline(axis, view)
                frame(axis, view, '' if index else who + how)
            figure.colorbar(image, ax=[*two], location='bottom', shrink=0.8, aspect=18)
        image = paint(row[-1], view, share, vmin=0, cmap='cividis')
        outline(row[-1], view)
        frame(row[-1], view, '' if index else 'adds to\nthe loss')
        figure.colorbar(image, ax=row[-1], location='bottom', aspect=10, format='%.1g')
    return figure


def _limits(*values: Tensor) -> list[tuple[Any, Tensor]]:
    both = torch.stack(values)
    return [(torch.min, both), (torch.max, both)]


def _normed(compared: Compared, index: int) -> tuple[Tensor, Tensor]:
    """What is compared of student and teacher, in float64."""
    loss = compared.loss(index)
    pair = compared.student[index].double(), compared.teacher[index].double()
    ours, theirs = (normed(x, loss.norm, loss.eps, loss.unbiased) for x in pair)
    return ours, theirs


def mimic_shares(compared: Compared) -> list[Tensor]:
    """What each position adds to the loss, on each level."""
    maps = []
    for index, x in enumerate(compared.student):
        loss = compared.loss(index)
        apart = DISTANCES[loss.distance](*_normed(compared, index), reduction='none')
        counts = dict(mean=x[0].numel(), position=x[0, 0].numel())
        sides = sum(side < x.shape[2] for side in loss.pooled)
        weight = loss.weight / (2 - 0.5**sides)
        maps.append(weight * apart[0].sum(0) / counts.get(loss.reduction, 1))
    return maps


def _by_settings(compared: Compared) -> LossPictures:
    loss, what = compared.loss(0), 'the loss'
    if loss.pooled:
        what = 'the loss, without its coarse grids'
    if loss.reduction == 'root':
        what = 'what the loss is the root of'
    return LossPictures(draw_mimic, mimic_shares, what)


def draw_focus(view: View, compared: Compared) -> Any:
    """Draw where student and teacher are active, which weighs the differences of FBKD.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    levels = len(compared.student)
    figure = begin(
        levels * (panel(view, 4) + 0.65) + 0.2,
        'FBKD: where are teacher and student active?',
        'The differences of the features count as much as the mean of these two, which have a '
        'mean of 1 each; on the right the squared differences, weighed by it.',
    )
    axes = figure.subplots(levels, 4, squeeze=False)
    for index, (row, share) in enumerate(zip(axes, _focus_shares(compared), strict=True)):
        temperature = compared.loss(0).temperature
        t, s = (
            spatial_attention(x[index].float(), temperature)[0]
            for x in (compared.teacher, compared.student)
        )
        label = level_name(index, levels, view, compared.teacher[index])
        begin_row(row[0], view, 4, index, label)
        high = max(float(x.max()) for x in (t, s))
        for axis, values, who in ((row[1], t, 'teacher'), (row[2], s, 'student')):
            image = paint(axis, view, values, vmin=0, vmax=high)
            outline(axis, view)
            frame(axis, view, '' if index else who)
        figure.colorbar(
            image, ax=[*row[1:3]], location='bottom', shrink=0.7, aspect=20, label='attention'
        )
        image = paint(row[3], view, share, vmin=0, cmap='cividis')
        outline(row[3], view)
        frame(row[3], view, '' if index else 'weighed difference')
        figure.colorbar(image, ax=row[3], location='bottom', aspect=14)
    return figure


def _focus_shares(compared: Compared) -> list[Tensor]:
    loss, maps = compared.loss(0), []
    levels = zip(loss.connectors, compared.student, compared.teacher, strict=True)
    with torch.no_grad():
        for connectors, s, t in levels:
            ours, theirs = (spatial_attention(x, loss.temperature) for x in (s, t))
            focus = (ours + theirs) / 2
            maps.append((focus * (connectors.features(s) - t).square().sum(1))[0].double())
    return maps


PICTURES: dict[type, Known] = {
    **dict.fromkeys(
        (MimicLoss, FitNetsLoss, PKDLoss, VkDLoss, NFDLoss, FTLoss, CosineLoss), _by_settings
    ),
    FBKDLoss: LossPictures(
        draw_focus, _focus_shares, 'what the masked part is the root of, without its weight'
    ),
}
