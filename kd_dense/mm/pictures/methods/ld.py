"""LD: regions of anchors, box distributions, and imitated features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from kd_dense.losses import LDImitationLoss, LDLoss, RotatedLDLoss
from kd_dense.losses.ld.ld import (
    check_maps,
    largest_score,
    mean_kl,
    prior_divergence,
    valuable_priors,
)
from kd_dense.losses.ld.regions import centers
from kd_dense.losses.ld.rotated import region_around
from kd_dense.mm.pictures.canvas import (
    MARK,
    NOTHING,
    STUDENT,
    TEACHER,
    WIDTH,
    begin,
    begin_row,
    draw_box,
    draw_boxes,
    draw_truth,
    frame,
    legend_below,
    level_name,
    name_boxes,
    paint,
    paint_image,
    panel,
    say_none,
    subplots,
    tint,
)
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_imitation', 'draw_ld']

SIDES = ('left', 'top', 'right', 'bottom')
# Of rotated boxes, by how they differ from an anchor.
OFFSETS = ('x', 'y', 'width', 'height')


def draw_ld(view: View, compared: Compared) -> Any:
    """Draw the two regions on each level, or the one, and the distributions at one anchor.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    targets = compared.needs['head_targets']
    anchors = check_maps(compared.student, compared.teacher, targets)
    main, region = targets.positive[0], _region_weights(compared)
    points = centers(torch.cat(targets.priors))
    ours, theirs = (
        _distributions(m, anchors, targets.sides) for m in (compared.student, compared.teacher)
    )
    apart = mean_kl(ours, theirs, temperature=1.0, dim=2).sum(1)
    region_name, weights, text = _words(compared)
    main_name = 'main region' if region_name != 'region' else "the head's positives"
    inside = main if region_name != 'region' and main.any() else region > 0
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
    figure = begin(
        sum(heights) + 0.1,
        'LD: which anchors count, and what is compared there?',
        f'{text} ' + 'Shown: around the object where student and teacher differ most.' * zoomed,
    )
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    axes = subplots(above, rows, columns, panels)
    if zoomed:
        draw_truth(axes[0], view, 3)
        draw_box(axes[0], window, MARK, '-')
        frame(axes[0], view, 'picture; marked: what is shown')
    x, y = points.T.numpy()
    for level, axis in enumerate(axes[zoomed:]):
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
            mew=min(2, dot / 3), label=main_name, zorder=4, clip_on=zoomed,
        )  # fmt: skip
        axis.plot([], [], 'o', ms=6.5, color=dots.cmap(0.7), label=region_name)
        if here[chosen]:
            axis.plot(
                x[chosen], y[chosen], 's', ms=max(2.6 * dot, 8), mfc='none', mec='black', mew=2,
                zorder=5, label='shown below',
            )  # fmt: skip
        frame(axis, view, f'level {level + 1}: one anchor every {targets.strides[level]} px')
        axis.set(xlim=window[::2], ylim=window[:0:-2])
        for artist in (*axis.lines, dots):  # without points they would lie at 0, 0
            artist.set_in_layout(False)
    above.colorbar(dots, ax=[*axes], shrink=0.8, pad=0.02, label=weights)
    handles = {
        text: h for a in above.axes for h, text in zip(*a.get_legend_handles_labels(), strict=True)
    }
    legend_below(above, [*handles.values()], 4)
    if not inside.any():
        below.suptitle('no object in this picture: no box is compared', fontsize=9.5)
    elif targets.rotated is None:
        _draw_sides(below, targets, chosen, stride, theirs[chosen], ours[chosen])
    else:
        of_anchors = targets.priors[0].shape[1] == 4
        _draw_numbers(below, theirs[chosen], ours[chosen], OFFSETS if of_anchors else SIDES)
    return figure


def _words(compared: Compared) -> tuple[str, str, str]:
    """What the region is called, what weighs an anchor in it, and what is said of it."""
    settings = compared.loss(0).settings
    if isinstance(compared.loss(0), RotatedLDLoss):
        box = 'upright box around it' if settings['around'] == 'hull' else 'box, not turned'
        text = 'One region: anchors near an object, by how well they fit it.'
        return 'region', f'weight: IoU with the {box}', text
    main = "Main region: the head's positives."
    if settings['region'] == 'inside':
        text = f'{main} Region inside: other anchors with their centre in a box.'
        return 'inside', "weight: the student's score", text
    text = f'{main} Valuable localization region (VLR): anchors that fit a box less well. '
    text += 'An anchor may be both.' * settings['vlr_on_positives']
    return 'VLR', 'weight in the VLR: IoU with the box', text


def _distributions(maps: Sequence[Tensor], anchors: Sequence[int], sides: int) -> Tensor:
    """Logits of the numbers of a box, ``(A, sides, bins)``, over all levels."""
    levels = maps[len(anchors) : 2 * len(anchors)]
    return torch.cat(
        [
            m[0].flatten(1).T.reshape(m[0][0].numel() * k, sides, m.shape[1] // (sides * k))
            for m, k in zip(levels, anchors, strict=True)
        ]
    )


def _window(
    view: View, boxes: Tensor, point: Tensor, stride: int
) -> tuple[float, float, float, float]:
    """The part of a picture in which single anchors can be seen: x1, y1, x2, y2."""
    height, width = view.size
    if max(view.size) <= 160 or not len(boxes):
        return 0, 0, width, height
    box = _nearest(boxes, point)
    half = max(float((box[2:] - box[:2]).max()) * 0.9, 6 * stride, 48)
    x, y = centers(box).tolist()
    return max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height)


def _nearest(boxes: Tensor, point: Tensor) -> Tensor:
    """The box whose centre is nearest to a point."""
    return boxes[(centers(boxes) - point).norm(dim=1).argmin()]


def _draw_sides(
    figure: Any, targets: Any, chosen: int, stride: int, theirs: Tensor, ours: Tensor
) -> None:
    """The distributions of the four sides at one anchor."""
    point = centers(torch.cat(targets.priors))[chosen]
    box = _nearest(targets.boxes[0], point)
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
        true = torch.cat([point - box[:2], box[2:] - point])[side].item()
        axis.axvline(true, color='black', ls='--', lw=1, label='ground truth')
        axis.set(title=SIDES[side], xlabel='distance, px', xticks=bins[:: max(2, len(bins) // 4)])
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('probability, %')
    legend_below(figure, axes[0].get_legend_handles_labels()[0], 3)


def _draw_numbers(figure: Any, theirs: Tensor, ours: Tensor, names: Sequence[str]) -> None:
    """The distributions of the five numbers of a rotated box at one anchor."""
    figure.suptitle(
        f'predicted at the marked anchor: the numbers of its box, {ours.shape[1]} bins each',
        fontsize=9.5,
    )
    axes = figure.subplots(1, len(ours), sharey=True)
    bins = np.arange(ours.shape[1])
    for side, axis in enumerate(axes):
        for maps, shift, color, who in (
            (theirs, -0.2, TEACHER, 'teacher'),
            (ours, 0.2, STUDENT, 'student'),
        ):
            share = 100 * maps[side].softmax(0)
            axis.bar(bins + shift, share, 0.4, color=color, label=who)
        axis.set(
            title=(*names, 'angle')[side], xlabel='bin', xticks=bins[:: max(2, len(bins) // 4)]
        )
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('probability, %')
    legend_below(figure, axes[0].get_legend_handles_labels()[0], 2)


def draw_imitation(view: View, compared: Compared) -> Any:
    """Draw where features are imitated on each level, and how far apart they are.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    loss = compared.loss(0)
    figure = begin(
        len(compared.student) * (panel(view, 4) + 0.65) + 0.2,
        'LD, imitation: which positions are imitated?',
        f"Squared differences of the features count in the region '{loss.region}'"
        + (', and those outside by a mean of their own.' if loss.background_weight else ' alone.'),
    )
    axes = figure.subplots(len(compared.student), 4, squeeze=False)
    counts = _imitation_counts(compared)
    for index, (row, count) in enumerate(zip(axes, counts, strict=True)):
        s, t = compared.student[index][0], compared.teacher[index][0]
        squares = (s - t).square().mean(0)
        label = level_name(index, len(counts), view, compared.student[index])
        begin_row(row[0], view, 4, index, label)
        tint(row[1], view, count / count.max().clamp(min=1e-30))
        draw_boxes(row[1], view)
        frame(row[1], view, '' if index else f"region '{loss.region}'")
        cmap = matplotlib.colormaps['cividis'].with_extremes(bad=NOTHING)
        inside = np.ma.masked_where((count == 0).numpy(), squares.numpy())
        high = float(squares.max())
        for axis, values, title in (
            (row[2], squares, 'squared difference'),
            (row[3], inside, 'of it counts'),
        ):
            image = paint(axis, view, values, cmap=cmap, vmin=0, vmax=high)
            draw_boxes(axis, view, 'white')
            frame(axis, view, '' if index else title)
        if not count.any():
            say_none(row[3])
        figure.colorbar(
            image, ax=[*row[2:]], location='bottom', shrink=0.7, aspect=20,
            label='(difference)², mean over channels',
        )  # fmt: skip
    return figure


def _region_weights(compared: Compared) -> Tensor:
    """Weights of the region that LD looks at beside the positives, ``(A,)``."""
    targets, settings = compared.needs['head_targets'], compared.loss(0).settings
    if isinstance(compared.loss(0), RotatedLDLoss):
        return region_around(targets, settings['topk'], settings['around'])[0]
    region = settings['region']
    weights = valuable_priors(targets, region, settings['topk'], settings['diou'])
    if not settings['vlr_on_positives']:
        weights = weights * ~targets.positive
    if isinstance(region, str) and region == 'inside':
        anchors = check_maps(compared.student, compared.teacher, targets)
        weights = weights * largest_score(compared.student[: len(anchors)], anchors)
    return weights[0]


def _ld_shares(compared: Compared) -> list[Tensor]:
    loss, targets = compared.loss(0), compared.needs['head_targets']
    settings: dict[str, Any] = loss.settings
    anchors = check_maps(compared.student, compared.teacher, targets)
    levels = len(anchors)
    s, t = compared.student, compared.teacher
    sides = 1 if settings['joint_sides'] else targets.sides
    boxes = prior_divergence(
        s[levels : 2 * levels], t[levels : 2 * levels], anchors, sides, settings['temperature']
    )[0]
    score = largest_score(s[:levels], anchors)[0]
    positive, region = targets.positive[0], _region_weights(compared)
    batch = settings['published_batch'] or 1
    shares = boxes * batch * settings['main_weight'] / settings['main_factor'] * score * positive
    shares = shares + boxes * batch * settings['vlr_weight'] / settings['vlr_factor'] * region
    for name, members in (('kd_weight', positive), ('kd_vlr_weight', region > 0)):
        if settings[name]:
            classes = prior_divergence(
                s[:levels], t[:levels], anchors, 1, settings['kd_temperature']
            )[0]
            classes = classes * torch.cat(targets.label_weights, 1)[0]
            counts = [max(int(m.sum()), 1) for m in members.split(targets.sizes)]
            count = torch.tensor(counts).repeat_interleave(torch.tensor(targets.sizes))
            shares = shares + settings[name] * classes * members / count
    return [
        loss.weight * level.view(*m.shape[2:], k).sum(2)
        for level, m, k in zip(shares.split(targets.sizes), s[:levels], anchors, strict=True)
    ]


def _rotated_ld_shares(compared: Compared) -> list[Tensor]:
    loss, targets = compared.loss(0), compared.needs['head_targets']
    anchors = check_maps(compared.student, compared.teacher, targets)
    levels, region = len(anchors), _region_weights(compared)
    counts = [max(int((r > 0).sum()), 1) for r in region.split(targets.sizes)]
    shares = torch.zeros_like(region)
    for maps, sides, part, temperature in (
        (slice(levels, 2 * levels), targets.sides, 'ld_weight', 'temperature'),
        (slice(levels), 1, 'kd_weight', 'kd_temperature'),
    ):
        pair = compared.student[maps], compared.teacher[maps]
        apart = prior_divergence(*pair, anchors, sides, loss.settings[temperature])[0]
        shares = shares + loss.settings[part] * apart * region
    return [
        loss.weight * level.view(*m.shape[2:], k).sum(2) / count
        for level, count, m, k in zip(
            shares.split(targets.sizes), counts, compared.student[:levels], anchors, strict=True
        )
    ]


def _imitation_shares(compared: Compared) -> list[Tensor]:
    weight, counts = compared.loss(0).weight, _imitation_counts(compared)
    return [
        weight * (s[0] - t[0]).square().mean(0) * count
        for s, t, count in zip(compared.student, compared.teacher, counts, strict=True)
    ]


def _imitation_counts(compared: Compared) -> list[Tensor]:
    """How much each position counts, ``(H, W)`` on each level."""
    loss, targets = compared.loss(0), compared.needs['head_targets']
    regions = loss.regions(targets, compared.needs.get('head_outputs'))
    positives = targets.positive.split(targets.sizes, 1)
    found = []
    for s, region, positive in zip(compared.student, regions, positives, strict=True):
        inside = region[0].view(*s.shape[2:], -1).any(2)
        outside = ~inside
        count = inside / inside.sum().clamp(min=1)
        count = count + loss.background_weight * outside / outside.sum().clamp(min=1)
        found.append(count * bool(positive.any() or not loss.positive_levels_only))
    return found


PICTURES: dict[type, Known] = {
    LDLoss: LossPictures(draw_ld, _ld_shares, 'the loss of all anchors at a position'),
    RotatedLDLoss: LossPictures(
        draw_ld, _rotated_ld_shares, 'the loss of all anchors at a position'
    ),
    LDImitationLoss: LossPictures(draw_imitation, _imitation_shares, 'the loss'),
}
