"""Augmentation-free dense contrastive distillation (Af-DCD): MGD, and a contrast on top.

Fan et al., "Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic
Segmentation", NeurIPS 2023. https://openreview.net/forum?id=CRNwGauQpb6
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.functional import check_temperature, in_blocks, without_autocast
from kd_dense.losses.base import DistillLoss, check_weights
from kd_dense.losses.features.generation.mgd import (
    Generator,
    check_mask_ratio,
    draw_mask,
    generate,
)
from kd_dense.losses.features.mimic.mimic import mimic_loss

__all__ = ['AfDCDLoss', 'af_dcd_loss', 'contrast']


def af_dcd_loss(
    student: Tensor,
    teacher: Tensor,
    generator: nn.Module,
    mask: Tensor,
    temperature: float = 0.07,
    groups: int = 16,
    pool: int = 4,
    window: tuple[int, int] = (4, 4),
) -> dict[str, Tensor]:
    r"""Generate the teacher's features, and tell apart what was generated.

    With $g = g(m \odot s)$ of [`mgd_loss`][kd_dense.losses.features.generation.mgd.mgd_loss],

    $$
    \text{features} = \frac{1}{N} \sum_{n, c, p} (g_{n, c, p} - t_{n, c, p})^2
    $$

    For the contrast both maps are max-pooled, cut into windows, and their channels into groups. A
    token $x_{p, k}$ is what group k has at position p. Each token of the student shall be closer
    to the same one of the teacher than to those of all other groups at all positions $q$ of its
    window $w(p)$:

    $$
    \text{contrast} = -\frac{1}{N P} \sum_{n, p, k} \log \frac{e^{-d(p, k; p, k)}}
        {e^{-d(p, k; p, k)} + \sum_{q \in w(p)} \sum_{l \ne k} e^{-d(p, k; q, l)}}, \qquad
    d(p, k; q, l) = \frac{1}{T} \|g_{p, k} - t_{q, l}\|_1
    $$

    over the P positions behind the pooling. Positions that fill no whole window are left out, as
    those that fill none of the pooling; a window is at most as large as the map.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        generator: See [`mgd_loss`][kd_dense.losses.features.generation.mgd.mgd_loss].
        mask: Likewise.
        temperature: $T > 0$.
        groups: How many groups; where they do not divide the channels, the next smaller number
            that does.
        pool: Side of the pooling windows; 1 for none.
        window: Height and width of a window.

    Returns:
        The two parts by name, without weights; scalars, at least float32.

    Raises:
        ValueError: If the shapes differ, an argument is out of range, or the channels cannot be
            cut into groups.

    Examples:
        >>> maps, keep_all = torch.eye(4).view(1, 4, 2, 2), torch.ones(1, 1, 2, 2)
        >>> parts = af_dcd_loss(maps, maps, nn.Identity(), keep_all, 1.0, 2, 1, (2, 2))
        >>> {name: round(part.item(), 4) for name, part in parts.items()}
        {'features': 0.0, 'contrast': 2.3726}
    """
    check_temperature(temperature)
    _check_cuts('af_dcd_loss', student.shape[1], groups, pool, window)
    generated = generate('af_dcd_loss', student, teacher, generator, mask)
    teacher = teacher.detach().to(generated.dtype)
    with without_autocast(generated):
        return dict(
            features=mimic_loss(generated, teacher, reduction='image'),
            contrast=contrast(generated, teacher, temperature, groups, pool, window),
        )


def contrast(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    groups: int,
    pool: int,
    window: tuple[int, int],
) -> Tensor:
    """The contrast of [`af_dcd_loss`][] of two maps of one shape and dtype."""
    groups = _whole_groups(student.shape[1], groups)
    ours, positions = _tokens(student, groups, pool, window)
    theirs, _ = _tokens(teacher, groups, pool, window)
    _, count, width = ours.shape
    token = torch.arange(count, device=ours.device)
    group = token % groups
    left_out = (group[:, None] == group) & (token[:, None] != token)
    totals = []
    # The gradient of the distances has a work space of the whole block on a GPU.
    blocks = in_blocks(ours, theirs, dim=0, width=count**2 * width, dtype=ours.dtype)
    for a, b in blocks:
        logits = torch.cdist(a, b, p=1) / -temperature
        logits = logits.masked_fill(left_out, float('-inf'))
        same = token.repeat(len(a))
        totals.append(F.cross_entropy(logits.flatten(0, 1), same, reduction='sum'))
    return torch.stack(totals).sum() / (len(student) * positions)


def _tokens(x: Tensor, groups: int, pool: int, window: tuple[int, int]) -> tuple[Tensor, int]:
    """Tokens of each window ``(windows, positions * groups, C / groups)``; positions of a map."""
    if pool > 1:
        x = F.max_pool2d(x, [min(pool, side) for side in x.shape[2:]])
    height, width = (min(pair) for pair in zip(window, x.shape[2:], strict=True))
    rows, columns = x.shape[2] // height, x.shape[3] // width
    x = x[:, :, : rows * height, : columns * width]
    cut = x.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    cut = cut.unflatten(1, (groups, -1)).permute(0, 3, 5, 4, 6, 1, 2)
    return cut.flatten(3, 5).flatten(0, 2), rows * height * columns * width


def _whole_groups(channels: int, groups: int) -> int:
    return next(k for k in range(min(groups, channels), 0, -1) if channels % k == 0)


def _check_cuts(
    owner: str, channels: int, groups: int, pool: int, window: tuple[int, int]
) -> None:
    numbers = (groups, pool, *window)
    if len(window) != 2 or not all(type(x) is int and x >= 1 for x in numbers):
        raise ValueError(
            f'{owner} expects groups, pool and a window of two sides, all of them >= 1, got '
            f'groups={groups!r}, pool={pool!r}, window={window!r}'
        )
    if _whole_groups(channels, groups) == 1:
        raise ValueError(
            f'{owner} cannot cut {channels} channels into at most {groups} groups, and contrasts '
            'at least two: tap another map, or give another number of groups'
        )


class AfDCDLoss(DistillLoss):
    """Module form of [`af_dcd_loss`][]: it draws the mask and has the generator.

    The parts are multiplied by weights of their own, and both by ``weight``. The defaults are the
    authors' (Apache-2.0) for Cityscapes; on Pascal VOC ``features`` is 1e-6, on ADE20K 1e-6 and
    ``contrast`` 0.04.

    Args:
        channels: Channels of the maps.
        weight: Factor on the result.
        features: Factor on the part of that name.
        contrast: Likewise.
        mask_ratio: Share of the positions that is masked.
        deep: See [`kd_dense.losses.features.generation.mgd.Generator`][].
        temperature: See [`af_dcd_loss`][], as the other arguments.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> loss = AfDCDLoss(channels=32)
        >>> student = torch.randn(2, 32, 16, 16, requires_grad=True)
        >>> sum(loss(student, torch.randn(2, 32, 16, 16)).values()).backward()
        >>> student.grad.shape
        torch.Size([2, 32, 16, 16])
    """

    parts = ('features', 'contrast')

    def __init__(
        self,
        channels: int,
        weight: float = 1.0,
        features: float = 2e-6,
        contrast: float = 5e-3,
        mask_ratio: float = 0.75,
        deep: bool = False,
        temperature: float = 0.07,
        groups: int = 16,
        pool: int = 4,
        window: tuple[int, int] = (4, 4),
    ) -> None:
        super().__init__(weight)
        self.weights = check_weights('AfDCDLoss', features=features, contrast=contrast)
        check_mask_ratio('AfDCDLoss', mask_ratio)
        check_temperature(temperature)
        _check_cuts('AfDCDLoss', channels, groups, pool, window)
        self.mask_ratio = mask_ratio
        self.temperature = temperature
        self.groups = groups
        self.pool = pool
        self.window = window
        self.generator = Generator(channels, deep)

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        parts = af_dcd_loss(
            student,
            teacher,
            self.generator,
            draw_mask(student, self.mask_ratio),
            self.temperature,
            self.groups,
            self.pool,
            self.window,
        )
        return {name: self.weight * self.weights[name] * part for name, part in parts.items()}
