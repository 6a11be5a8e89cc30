"""Where the loss of a term comes from: what each position adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kd_dense.functional import soft_kl
from kd_dense.losses import (
    AttentionMapLoss,
    CWDLoss,
    FGDLoss,
    IntRALoss,
    LDImitationLoss,
    LDLoss,
    PairWiseLoss,
    PixelWiseLoss,
)
from kd_dense.losses.fgd import attentions, box_masks, mean_activations
from kd_dense.losses.intrakd import (
    attention_maps,
    region_affinities,
    region_masks,
    region_moments,
)
from kd_dense.losses.ld import check_maps, largest_score, prior_divergence, valuable_priors
from kd_dense.losses.skd import unit_nodes
from kd_dense.mm.observe import Array, Compared, View

__all__ = ['Differences', 'differences']


def of_loss(table: Mapping[type, Any], compared: Compared, otherwise: Any) -> Any:
    """What a table says of a loss, or of the class that it derives from."""
    kind = type(compared.losses[0])
    if issubclass(kind, CWDLoss) and compared.loss(0).norm == 'spatial':
        kind = PixelWiseLoss  # the same distributions: of the classes, at each position
    elif issubclass(kind, CWDLoss) and compared.loss(0).norm != 'channel':
        return otherwise
    return next((table[one] for one in kind.__mro__ if one in table), otherwise)


class Differences(NamedTuple):
    """Where the loss of a term comes from.

    Attributes:
        value: The weighted loss.
        maps: ``(H, W)`` for each map of the tap: what each position adds to the loss.
        what: What is shown.
    """

    value: float
    maps: list[Tensor]
    what: str


def differences(compared: Compared) -> Differences:
    """Find out what each position adds to the loss of a term.

    Together the positions make the loss, or the parts of it that ``what`` names. Of a loss that
    is not known here, the difference of the mean activations is shown.
    """
    share, what = of_loss(SHARES, compared, (_activation_shares, 'difference of mean activation'))
    return Differences(compared.value, share(compared), what)


def class_shares(compared: Compared, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class distributions of student and teacher, ``(C, H, W)``, and their KL, ``(H, W)``."""
    s, t = compared.student[level], compared.teacher[level]
    temperature = compared.loss(level).temperature
    ours, theirs = ((x[0] / temperature).softmax(0) for x in (s, t))
    return ours, theirs, soft_kl(s, t, temperature, 1)[0]


class Nodes(NamedTuple):
    """The nodes of a map: edges in pixels of the picture, affinities of student and teacher."""

    rows: Array
    columns: Array
    ours: Array
    theirs: Array


def find_nodes(view: View, compared: Compared, level: int) -> Nodes:
    loss, maps = compared.loss(level), (compared.student[level], compared.teacher[level])
    edges = []
    for side, pixels in zip(maps[0].shape[2:], view.batch_shape, strict=True):
        window = max(1, int(side * loss.scale))
        starts = [*range(0, side, window), side]
        edges.append(np.array(starts) * pixels / side)
    units = (unit_nodes(x, loss.scale, True)[0] for x in maps)
    ours, theirs = ((x.T @ x).numpy() for x in units)
    return Nodes(edges[0], edges[1], ours, theirs)


class Focus(NamedTuple):
    """What weighs the cells of a level in FGD, ``(H, W)`` each."""

    foreground: Tensor
    background: Tensor
    teacher: Tensor
    student: Tensor
    channels: Tensor


def find_focus(compared: Compared, level: int) -> Focus:
    loss = compared.loss(level)
    s, t = compared.student[level], compared.teacher[level]
    size = (t.shape[2], t.shape[3])
    needs = compared.needs
    shapes = [needs['batch_shape']] if loss.box_scale == 'batch' else needs['image_shapes']
    foreground, background = (m[0] for m in box_masks(needs['boxes'], shapes, size))
    (theirs, channels), (ours, _) = (
        attentions(*mean_activations(x.flatten(2).abs()), loss.temperature) for x in (t, s)
    )
    return Focus(foreground, background, theirs.view(size), ours.view(size), channels[0])


def region_weights(compared: Compared) -> Tensor:
    """Weights of the region that LD looks at beside the positives, ``(A,)``."""
    targets, settings = compared.needs['head_targets'], compared.loss(0).settings
    region = settings['region']
    weights = valuable_priors(targets, region, settings['topk'], settings['diou'])
    if not settings['vlr_on_positives']:
        weights = weights * ~targets.positive
    if isinstance(region, str) and region == 'inside':
        anchors = check_maps(compared.student, compared.teacher, targets)
        weights = weights * largest_score(compared.student[: len(anchors)], anchors)
    return weights[0]


class Regions(NamedTuple):
    """The areas of the classes of a picture, and their affinities; the largest area first."""

    labels: list[int]
    masks: Tensor  # (K, H, W)
    ours: Array  # (3, K, K)
    theirs: Array


def find_regions(compared: Compared, level: int) -> Regions:
    loss = compared.loss(level)
    s, t = compared.student[level], compared.teacher[level]
    masks = region_masks(
        compared.needs['segmentation'], s.shape[-2:], loss.num_classes, loss.regions,
        loss.kernel, loss.ignore_label,
    )  # fmt: skip
    eps = loss.eps if loss.eps is not None else 1e-6 if loss.regions == 'dilate' else 1e-10
    area = masks[0].sum(1)
    present = [int(c) for c in area.argsort(descending=True) if area[c] > 0]
    masks = masks[:, present]
    how = loss.regions, loss.pixels, loss.third_denominator, eps
    ours, theirs = (
        region_affinities(region_moments(x, masks, *how), loss.cos_eps)[0].numpy() for x in (s, t)
    )
    return Regions(present, masks[0].view(-1, *s.shape[-2:]), ours, theirs)


def attention_shares(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    """Normalised attention of student and teacher, ``(H, W)``."""
    loss = compared.loss(level)
    maps = compared.student[level], compared.teacher[level]
    ours, theirs = (attention_maps(x, loss.norm, loss.eps)[0].view(x.shape[2:]) for x in maps)
    return ours, theirs


def mean_activation(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    """Mean activation of student and teacher, ``(H, W)``."""
    s, t = compared.student[level][0], compared.teacher[level][0]
    return s.mean(0), t.mean(0)


def _cwd_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        loss = compared.loss(level)
        ours, theirs = ((x[0].double() / loss.temperature).flatten(1) for x in (s, t))
        p, q = theirs.softmax(1), ours.softmax(1)
        if loss.divergence == 'mse':
            shares = (p - q).square()
        else:  # its sum over the positions is the KL, and no position adds less than 0
            log_ratio = theirs.log_softmax(1) - ours.log_softmax(1)
            shares = loss.temperature**2 * (p * log_ratio - p + q)
        maps.append(loss.weight * shares.mean(0).view(s.shape[2:]))
    return maps


def _pixel_wise_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        ours, theirs, kl = class_shares(compared, level)
        if loss.divergence == 'mse':
            kl = (ours - theirs).square().sum(0)
        factor = getattr(loss, 'published_batch', None) or 1
        maps.append(loss.weight * factor * kl / kl.numel())
    return maps


def _pair_wise_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, s in enumerate(compared.student):
        loss = compared.loss(level)
        unit = [
            (x.T @ x)
            for x in (unit_nodes(m, loss.scale, True)[0] for m in (s, compared.teacher[level]))
        ]
        nodes = (unit[0] - unit[1]).square().mean(1) / len(unit[0])
        height, width = s.shape[2:]
        windows = [max(1, int(side * loss.scale)) for side in (height, width)]
        row, column = (
            torch.arange(side) // window
            for side, window in zip((height, width), windows, strict=True)
        )
        index = row[:, None] * (int(column[-1]) + 1) + column
        cells = torch.bincount(index.flatten())[index]
        maps.append(loss.weight * nodes[index] / cells)
    return maps


def _fgd_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level, (s, t) in enumerate(zip(compared.student, compared.teacher, strict=True)):
        loss = compared.loss(level)
        focus = find_focus(compared, level)
        weights = loss.weights
        mask = weights['foreground'] * focus.foreground + weights['background'] * focus.background
        squares = (focus.channels[:, None, None] * (s[0] - t[0]).square()).sum(0)
        maps.append(loss.weight * mask * focus.teacher * squares)
    return maps


def _ld_shares(compared: Compared) -> list[Tensor]:
    loss, targets = compared.loss(0), compared.needs['head_targets']
    settings: dict[str, Any] = loss.settings
    anchors = check_maps(compared.student, compared.teacher, targets)
    levels = len(anchors)
    s, t = compared.student, compared.teacher
    sides = 1 if settings['joint_sides'] else 4
    boxes = prior_divergence(
        s[levels : 2 * levels], t[levels : 2 * levels], anchors, sides, settings['temperature']
    )[0]
    score = largest_score(s[:levels], anchors)[0]
    positive, region = targets.positive[0], region_weights(compared)
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


def imitation_shares(compared: Compared) -> list[Tensor]:
    loss, targets = compared.loss(0), compared.needs['head_targets']
    regions = loss.regions(targets, compared.needs.get('head_outputs'))
    maps = []
    for s, t, region in zip(compared.student, compared.teacher, regions, strict=True):
        inside = region[0].view(*s.shape[2:], -1).any(2)
        squares = (s[0] - t[0]).square().mean(0)
        maps.append(loss.weight * squares * inside / inside.sum().clamp(min=1))
    return maps


def _intrakd_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss, found = compared.loss(level), find_regions(compared, level)
        count = len(found.labels) if loss.normaliser == 'present' else loss.num_classes
        classes = ((found.ours - found.theirs) ** 2).sum((0, 2)) / (3 * max(count, 1) ** 2)
        weight = torch.from_numpy(classes) / found.masks.sum((1, 2))
        maps.append(loss.weight * (weight[:, None, None] * found.masks).sum(0))
    return maps


def _attention_map_shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        ours, theirs = attention_shares(compared, level)
        maps.append(compared.loss(level).weight * (ours - theirs).square())
    return maps


def _activation_shares(compared: Compared) -> list[Tensor]:
    pairs = [mean_activation(compared, i) for i, x in enumerate(compared.student) if x.dim() == 4]
    return [(ours - theirs).abs() for ours, theirs in pairs if ours.shape == theirs.shape]


SHARES: dict[type, tuple[Callable[[Compared], list[Tensor]], str]] = {
    CWDLoss: (_cwd_shares, 'the loss, all channels together'),
    PixelWiseLoss: (_pixel_wise_shares, 'how far apart the class distributions are'),
    PairWiseLoss: (_pair_wise_shares, 'the loss of each node'),
    FGDLoss: (_fgd_shares, 'the parts foreground and background'),
    LDLoss: (_ld_shares, 'the loss of all anchors at a position'),
    LDImitationLoss: (imitation_shares, 'the loss'),
    IntRALoss: (_intrakd_shares, 'the loss of each class, spread over its area'),
    AttentionMapLoss: (_attention_map_shares, 'the loss'),
}
