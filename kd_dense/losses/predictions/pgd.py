"""Prediction-guided distillation (PGD).

Yang et al., "Prediction-Guided Distillation for Dense Object Detection", ECCV 2022.
https://arxiv.org/abs/2203.05469
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_dense.functional import (
    at_least_float32,
    check_temperature,
    in_blocks,
    mean_over_ranks,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, check_weight
from kd_dense.losses.ld_regions import centers, inside_region, pad_boxes
from kd_dense.losses.predictions.boxes import HeadBoxes, overlap, rows_of_priors

__all__ = [
    'KeyRegions',
    'PGDBoxLoss',
    'PGDClassLoss',
    'key_regions',
    'pgd_box_loss',
    'pgd_class_loss',
]

CLASS_PARTS = ('foreground', 'background', 'attention')
BOX_PARTS = ('foreground', 'attention')


class KeyRegions(NamedTuple):
    """Where the teacher's predictions of objects are good, and where no object is.

    Attributes:
        weights: 0 to 1, ``(N, H, W)`` of each level.
        background: 1 where no object is, else 0, ``(N, H, W)`` of each level.
    """

    weights: list[Tensor]
    background: list[Tensor]


@torch.no_grad()
def key_regions(
    teacher: Sequence[Tensor],
    head_boxes: HeadBoxes,
    boxes: list[Tensor],
    labels: list[Tensor],
    trust: float = 0.8,
    topk: int = 30,
    jitter: float = 0.05,
    noise: Tensor | None = None,
) -> KeyRegions:
    r"""Find for each object where the teacher predicts it best.

    The quality of a prior i for an object is $p_i^{1 - \xi}\,\mathrm{IoU}_i^\xi$, with the
    probability p that the teacher gives the object's class there and the IoU of its box with the
    object. The ``topk`` best priors of all levels are samples of a Gaussian: with mean and
    covariance of their centres, which are moved a little at random so that they do not lie on a
    line, a prior weighs $e^{-d^2 / 2}$ at a Mahalanobis distance of d, and nothing outside of the
    object. Of several objects, and of several anchors of a position, the largest weight counts.

    Args:
        teacher: What the teacher's head yields, L levels: L maps of class logits, L of boxes.
        head_boxes: What makes boxes of the maps.
        boxes: Ground truth of each image, ``(n, 4)``: x1, y1, x2, y2 in pixels; n may be 0.
        labels: Its classes, ``(n,)``.
        trust: $\xi$, 0 to 1: how much the box counts against the class.
        topk: How many priors of an object.
        jitter: How far centres are moved at most, in pixels.
        noise: How each of them is, in place of random numbers: ``(N, G, topk, 2)``, 0 to 1, where
            G is the largest n.

    Examples:
        >>> from kd_dense.losses.predictions.boxes import Decoded, decode_distances
        >>> points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0]])
        >>> def decode(maps):
        ...     return Decoded([points], [decode_distances(points, maps[0].flatten(2).mT)])
        >>> outputs = [torch.zeros(1, 1, 1, 3), torch.full((1, 4, 1, 3), 4.0)]
        >>> objects, classes = [torch.tensor([[0.0, 0.0, 16.0, 8.0]])], [torch.tensor([0])]
        >>> found = key_regions(
        ...     outputs, HeadBoxes(decode, decode), objects, classes, topk=2, jitter=0.0
        ... )
        >>> found.weights[0], found.background[0]
        (tensor([[[1., 1., 0.]]]), tensor([[[0., 0., 1.]]]))
    """
    levels = len(teacher) // 2
    decoded = head_boxes.teacher(teacher[levels : 2 * levels])
    levels = len(decoded.priors)
    shapes = [x.shape[-2:] for x in teacher[:levels]]
    anchors = [len(p) // s.numel() for p, s in zip(decoded.priors, shapes, strict=True)]
    rows = [rows_of_priors(m, k) for m, k in zip(teacher, anchors, strict=False)]
    scores = torch.cat(rows, 1).sigmoid().mT  # (N, C, A)
    found = torch.cat(decoded.boxes, 1)
    middle = centers(torch.cat(decoded.priors))
    count = min(topk, len(middle))
    objects = pad_boxes(boxes).to(found.dtype)
    classes = pad_sequence(labels, batch_first=True)
    images, most = classes.shape
    if noise is None:
        noise = torch.rand(images, most, count, 2, device=middle.device, dtype=middle.dtype)
    weights = torch.zeros_like(found[..., 0])
    width = images * len(middle)
    for some, kinds, moves in _blocks(objects, classes, noise, width=width, dtype=found.dtype):
        likely = scores.gather(1, kinds[..., None].expand(-1, -1, len(middle)))
        fit = overlap(found[:, None], some[:, :, None]).iou
        best = (likely.pow(1 - trust) * fit.pow(trust)).topk(count, -1).indices
        samples = middle[best]  # (N, G, topk, 2)
        near = _gaussian(samples, samples + (moves - 0.5) * (2 * jitter))
        low, high = samples - some[:, :, None, :2], some[:, :, None, 2:] - samples
        near = near * (torch.minimum(low, high).amin(-1) > 0)
        weights.scatter_reduce_(1, best.flatten(1), near.flatten(1), 'amax')
    everywhere = torch.ones_like(weights, dtype=torch.bool)
    outside = ~inside_region(decoded.priors, everywhere, boxes)
    sizes = [len(p) for p in decoded.priors]

    def maps(x: Tensor) -> list[Tensor]:
        split = zip(x.to(weights.dtype).split(sizes, 1), shapes, strict=True)
        return [one.unflatten(1, (*shape, -1)).amax(-1) for one, shape in split]

    return KeyRegions(maps(weights), maps(outside))


def _blocks(*tensors: Tensor, width: int, dtype: torch.dtype) -> Any:
    """Some of the objects of each image at a time."""
    return in_blocks(*tensors, dim=1, width=width, dtype=dtype) if tensors[0].shape[1] else ()


def _gaussian(samples: Tensor, moved: Tensor) -> Tensor:
    """How near samples ``(..., k, 2)`` are to the middle of others, by their covariance."""
    mean = moved.mean(-2, keepdim=True)
    x, y = (moved - mean).unbind(-1)
    xx, yy, xy = (one.mean(-1, keepdim=True) for one in (x * x, y * y, x * y))
    x, y = (samples - mean).unbind(-1)
    square = (yy * x * x + xx * y * y - 2 * xy * x * y) / (xx * yy - xy * xy + 1e-10)
    return (-square / 2).exp()


def pgd_class_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    regions: KeyRegions,
    foreground: float = 0.04,
    background: float = 0.02,
    attention: float = 0.0008,
    temperature: float = 0.8,
    level_step: float = 0.25,
    mix_images: bool = False,
) -> dict[str, Tensor]:
    r"""Match features of the class tower, in the key regions and where nothing is.

    With the attentions of the teacher over positions, $S_i = HW\,\sigma_i(\bar{|t|} / T)$ of the
    mean over channels, and over the channels of each position,
    $C_{ci} = C\,\sigma_c(|t_{ci}| / T)$, and masks that are divided by the number of their
    positions that are not 0 in each image,

    $$
    \mathrm{foreground} = \frac{w_l\,\alpha}{N} \sum_{n,c,i} (s - t)^2\, S_i\, C_{ci}\, m_i,
    \qquad
    \mathrm{attention} = \delta \Bigl(\frac{1}{NHW} \sum |C^s - C^t| +
        \frac1N \sum |S^s - S^t|\Bigr)
    $$

    and ``background`` like ``foreground``, summed over levels; $w_l = 1 + l \cdot$ ``level_step``.

    Args:
        student: Features ``(N, C, H, W)`` of each level.
        teacher: Same shapes. No gradient flows into it.
        regions: The masks.
        foreground: $\alpha$.
        background: Its counterpart for the background.
        attention: $\delta$.
        temperature: T, ``> 0``.
        level_step: How much more each level weighs than the one before.
        mix_images: Weigh each image with the masks of all images, which are added up: a slip of
            the authors' code, with which their weights were found. It grows with the images of a
            process.

    Returns:
        The weighted parts: scalars, at least float32.

    Raises:
        ValueError: If shapes differ.

    Examples:
        >>> maps = [torch.zeros(1, 2, 1, 2)], [torch.ones(1, 2, 1, 2)]
        >>> regions = KeyRegions([torch.tensor([[[1.0, 0.0]]])], [torch.tensor([[[0.0, 1.0]]])])
        >>> pgd_class_loss(*maps, regions, attention=0.0)['foreground']
        tensor(0.0800)
    """
    features = class_parts(
        student, teacher, regions, foreground, background, temperature, level_step, mix_images
    )
    totals = {part: [x.sum() for x in maps] for part, maps in features.items()}
    totals['attention'] = []
    for s, t in zip(student, teacher, strict=True):
        apart = _apart(s, t, temperature).sum() / s[0, 0].numel()
        s, t = (_places(at_least_float32(x), temperature) for x in (s, t.detach()))
        totals['attention'].append(attention * (apart + (s - t).abs().sum()) / len(s))
    return {part: torch.stack(totals[part]).sum() for part in CLASS_PARTS}


def class_parts(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    regions: KeyRegions,
    foreground: float,
    background: float,
    temperature: float,
    level_step: float,
    mix_images: bool,
) -> dict[str, list[Tensor]]:
    """What each position adds to both parts of the features, ``(N, H, W)`` of each level."""
    found: dict[str, list[Tensor]] = {part: [] for part in CLASS_PARTS[:2]}
    masks = zip(regions.weights, regions.background, strict=True)
    for level, (s, t, both) in enumerate(zip(student, teacher, masks, strict=True)):
        check_same_shape('pgd_class_loss', s, t)
        t = at_least_float32(t.detach())
        error = (at_least_float32(s) - t).square() * _channels(t, temperature)
        error = error.sum(1) * _places(t, temperature) * ((1 + level * level_step) / len(s))
        for part, factor, mask in zip(found, (foreground, background), both, strict=True):
            mask = mask / (mask != 0).sum((1, 2), keepdim=True).clamp(min=1)
            mask = mask.sum(0) if mix_images else mask
            found[part].append(factor * error * mask)
    return found


def pgd_box_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    regions: KeyRegions,
    foreground: float = 0.064,
    attention: float = 0.0008,
    temperature: float = 0.8,
) -> dict[str, Tensor]:
    r"""Match features of the box tower in the key regions.

    With the n positions of a level whose weight m is not 0,

    $$
    \mathrm{foreground} = \frac{\gamma}{n} \sum_i \frac{m_i}{C} \sum_c (s - t)^2\, C_{ci},
    \qquad
    \mathrm{attention} = \frac{\delta}{n} \sum_{c,i\,:\,m_i > 0} |C^s_{ci} - C^t_{ci}|
    $$

    summed over levels; $C_{ci}$ as in [`pgd_class_loss`][].

    Args:
        student: Features ``(N, C, H, W)`` of each level.
        teacher: Same shapes. No gradient flows into it.
        regions: The masks.
        foreground: $\gamma$.
        attention: $\delta$.
        temperature: T, ``> 0``.

    Returns:
        The weighted parts: scalars, at least float32.

    Raises:
        ValueError: If shapes differ.

    Examples:
        >>> maps = [torch.zeros(1, 2, 1, 2)], [torch.ones(1, 2, 1, 2)]
        >>> regions = KeyRegions([torch.tensor([[[1.0, 0.0]]])], [torch.tensor([[[0.0, 1.0]]])])
        >>> pgd_box_loss(*maps, regions)['foreground']
        tensor(0.0640)
    """
    found = box_parts(student, teacher, regions, foreground, attention, temperature)
    return {part: torch.stack([x.sum() for x in maps]).sum() for part, maps in found.items()}


def box_parts(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    regions: KeyRegions,
    foreground: float,
    attention: float,
    temperature: float,
) -> dict[str, list[Tensor]]:
    """What each position adds to the parts, ``(N, H, W)`` of each level."""
    found: dict[str, list[Tensor]] = {part: [] for part in BOX_PARTS}
    for s, t, mask in zip(student, teacher, regions.weights, strict=True):
        check_same_shape('pgd_box_loss', s, t)
        members = mask > 0
        n = mean_over_ranks(members.sum().to(mask.dtype))
        n = torch.where(n > 0, n, 1)
        taught = at_least_float32(t.detach())
        error = (at_least_float32(s) - taught).square() * _channels(taught, temperature)
        found['foreground'].append(foreground / n * error.mean(1) * mask)
        found['attention'].append(attention / n * _apart(s, t, temperature).sum(1) * members)
    return found


def _apart(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the channels' attentions are apart, ``(N, C, H, W)``."""
    s, t = (_channels(at_least_float32(x), temperature) for x in (student, teacher.detach()))
    return (s - t).abs()


def _places(x: Tensor, temperature: float) -> Tensor:
    """How much each position counts, ``(N, H, W)``: 1 in the mean."""
    rows = x.abs().mean(1).flatten(1)
    return ((rows / temperature).softmax(1) * rows.shape[1]).view(len(x), *x.shape[2:])


def _channels(x: Tensor, temperature: float) -> Tensor:
    """How much each channel counts at a position, ``(N, C, H, W)``: 1 in the mean."""
    return (x.abs() / temperature).softmax(1) * x.shape[1]


class _PGDLoss(DistillLoss):
    """What both have in common: where they look."""

    needs = ('boxes', 'labels', 'head_outputs', 'head_boxes')
    all_maps = True

    def __init__(
        self,
        weight: float,
        trust: float,
        topk: int,
        jitter: float,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(weight)
        name = type(self).__name__
        for key in ('foreground', 'background', 'attention', 'level_step'):
            check_weight(name, key, settings.get(key, 0.0))
        check_weight(name, 'jitter', jitter)
        check_temperature(settings['temperature'])
        if not 0 <= trust <= 1:
            raise ValueError(f'{name} expects trust from 0 to 1, got trust={trust}')
        if topk < 1:
            raise ValueError(f'{name} expects topk >= 1, got topk={topk}')
        self.trust, self.topk, self.jitter = trust, topk, jitter
        self.settings = settings

    def regions(
        self,
        maps: Sequence[Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        head_outputs: tuple[Sequence[Tensor], Sequence[Tensor]],
        head_boxes: HeadBoxes,
    ) -> KeyRegions:
        """The masks of a step."""
        outputs = head_outputs[1]
        levels = len(maps)
        if len(outputs) < 2 * levels:
            raise ValueError(
                f'{type(self).__name__}: the head of the teacher yields {len(outputs)} maps, '
                f'expected class logits and boxes of {levels} levels, as many as the tap yields: '
                'tap the last convolution of a tower'
            )
        for index, (x, output) in enumerate(zip(maps, outputs, strict=False)):
            if x.shape[2:] != output.shape[2:]:
                raise ValueError(
                    f'{type(self).__name__}: level {index} is {tuple(x.shape)} at the tap, and '
                    f'the head of the teacher yields {tuple(output.shape)}: tap the last '
                    'convolution of a tower, and give both models the same strides'
                )
        return key_regions(
            outputs[: 2 * levels],
            head_boxes,
            boxes,
            labels,
            trust=self.trust,
            topk=self.topk,
            jitter=self.jitter,
        )


class PGDClassLoss(_PGDLoss):
    """[`pgd_class_loss`][] in [`key_regions`][], times ``weight``.

    Its tap is the last convolution of the class tower. The defaults are the authors' for FCOS and
    GFL.

    Args:
        weight: Factor on all parts.
        trust: See [`key_regions`][].
        topk: See there.
        jitter: See there. The numbers come from the default generator of the device.
        foreground: See [`pgd_class_loss`][], as the other arguments.

    Examples:
        >>> PGDClassLoss(topk=9).parts
        ('foreground', 'background', 'attention')
    """

    parts = CLASS_PARTS

    def __init__(
        self,
        weight: float = 1.0,
        trust: float = 0.8,
        topk: int = 30,
        jitter: float = 0.05,
        foreground: float = 0.04,
        background: float = 0.02,
        attention: float = 0.0008,
        temperature: float = 0.8,
        level_step: float = 0.25,
        mix_images: bool = False,
    ) -> None:
        settings: dict[str, Any] = dict(
            foreground=foreground,
            background=background,
            attention=attention,
            temperature=temperature,
            level_step=level_step,
            mix_images=mix_images,
        )
        super().__init__(weight, trust, topk, jitter, settings)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], **needs: Any
    ) -> dict[str, Tensor]:
        parts = pgd_class_loss(student, teacher, self.regions(teacher, **needs), **self.settings)
        return {name: self.weight * part for name, part in parts.items()}


class PGDBoxLoss(_PGDLoss):
    """[`pgd_box_loss`][] in [`key_regions`][], times ``weight``.

    Its tap is the last convolution of the box tower. The defaults are the authors' for FCOS and
    GFL.

    Args:
        weight: Factor on all parts.
        trust: See [`key_regions`][].
        topk: See there.
        jitter: See there. The numbers come from the default generator of the device.
        foreground: See [`pgd_box_loss`][], as the other arguments.

    Examples:
        >>> PGDBoxLoss(topk=9).parts
        ('foreground', 'attention')
    """

    parts = BOX_PARTS

    def __init__(
        self,
        weight: float = 1.0,
        trust: float = 0.6,
        topk: int = 30,
        jitter: float = 0.05,
        foreground: float = 0.064,
        attention: float = 0.0008,
        temperature: float = 0.8,
    ) -> None:
        settings: dict[str, Any] = dict(
            foreground=foreground, attention=attention, temperature=temperature
        )
        super().__init__(weight, trust, topk, jitter, settings)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], **needs: Any
    ) -> dict[str, Tensor]:
        parts = pgd_box_loss(student, teacher, self.regions(teacher, **needs), **self.settings)
        return {name: self.weight * part for name, part in parts.items()}
