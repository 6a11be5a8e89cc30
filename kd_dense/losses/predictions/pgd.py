"""Prediction-guided distillation (PGD).

Yang et al., "Prediction-Guided Distillation for Dense Object Detection", ECCV 2022.
https://arxiv.org/abs/2203.05469
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32, check_temperature, mean_over_ranks
from kd_dense.losses.base import DistillLoss, check_counts, check_same_shape, check_weights
from kd_dense.losses.fgd.fgd import spatial_attention
from kd_dense.losses.predictions.boxes import HeadBoxes
from kd_dense.losses.predictions.key_regions import KeyRegions, key_regions

__all__ = ['PGDBoxLoss', 'PGDClassLoss', 'pgd_box_loss', 'pgd_class_loss']

CLASS_PARTS = ('foreground', 'background', 'attention')
BOX_PARTS = ('foreground', 'attention')


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
        s, t = (spatial_attention(at_least_float32(x), temperature) for x in (s, t.detach()))
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
        error = error.sum(1) * spatial_attention(t, temperature)
        error = error * ((1 + level * level_step) / len(s))
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


def _channels(x: Tensor, temperature: float) -> Tensor:
    """How much each channel counts at a position, ``(N, C, H, W)``: 1 in the mean."""
    return (x.abs() / temperature).softmax(1) * x.shape[1]


class _PGDLoss(DistillLoss):
    """What both have in common: where they look."""

    needs = ('boxes', 'labels', 'head_outputs', 'head_boxes')
    all_maps = True
    function: Callable[..., dict[str, Tensor]]

    def __init__(
        self,
        weight: float,
        trust: float,
        topk: int,
        jitter: float,
        **settings: Any,
    ) -> None:
        super().__init__(weight)
        name = type(self).__name__
        factors = ('foreground', 'background', 'attention', 'level_step')
        check_weights(name, jitter=jitter, **{key: settings.get(key, 0.0) for key in factors})
        check_temperature(settings['temperature'])
        if not 0 <= trust <= 1:
            raise ValueError(f'{name} expects trust from 0 to 1, got trust={trust}')
        check_counts(name, topk=topk)
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

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], **needs: Any
    ) -> dict[str, Tensor]:
        parts = self.function(student, teacher, self.regions(teacher, **needs), **self.settings)
        return {name: self.weight * part for name, part in parts.items()}


class PGDClassLoss(_PGDLoss):
    """Module form of [`pgd_class_loss`][], times ``weight``, in the key regions of the teacher.

    Its tap is the last convolution of the class tower. The defaults are the authors' for FCOS and
    GFL.

    Args:
        weight: Factor on all parts.
        trust: See
            [`key_regions`][kd_dense.losses.predictions.key_regions.key_regions].
        topk: See there.
        jitter: See there. The numbers come from the default generator of the device.
        foreground: See [`pgd_class_loss`][], as the other arguments.

    Examples:
        >>> PGDClassLoss(topk=9).parts
        ('foreground', 'background', 'attention')
    """

    parts = CLASS_PARTS
    function = staticmethod(pgd_class_loss)

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
        super().__init__(
            weight,
            trust,
            topk,
            jitter,
            foreground=foreground,
            background=background,
            attention=attention,
            temperature=temperature,
            level_step=level_step,
            mix_images=mix_images,
        )


class PGDBoxLoss(_PGDLoss):
    """Module form of [`pgd_box_loss`][], times ``weight``, in the key regions of the teacher.

    Its tap is the last convolution of the box tower. The defaults are the authors' for FCOS and
    GFL.

    Args:
        weight: Factor on all parts.
        trust: See
            [`key_regions`][kd_dense.losses.predictions.key_regions.key_regions].
        topk: See there.
        jitter: See there. The numbers come from the default generator of the device.
        foreground: See [`pgd_box_loss`][], as the other arguments.

    Examples:
        >>> PGDBoxLoss(topk=9).parts
        ('foreground', 'attention')
    """

    parts = BOX_PARTS
    function = staticmethod(pgd_box_loss)

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
        super().__init__(
            weight,
            trust,
            topk,
            jitter,
            foreground=foreground,
            attention=attention,
            temperature=temperature,
        )
