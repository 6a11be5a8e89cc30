"""Feature-based knowledge distillation for detectors (FBKD).

Zhang and Ma, "Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate
and Efficient Detectors", ICLR 2021. https://openreview.net/forum?id=uKhGRvM8QNH
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.functional import (
    at_least_float32,
    check_published_batch,
    check_temperature,
    standardised,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, check_weights
from kd_dense.losses.features.mimic.mimic import root_over_ranks
from kd_dense.losses.fgd.fgd import spatial_attention

__all__ = ['Connectors', 'FBKDLoss', 'Relation', 'fbkd_loss']

PARTS = ('masked', 'channel', 'spatial', 'relation')


class Relation(nn.Module):
    r"""What a non-local block (Wang et al.) adds to every position: a mean over all of them.

    $$
    y = x + \mathrm{BN}\Bigl(W_o\, \frac{1}{Q} \sum_q \bigl(\theta(x_p)^\top \phi(x)_q\bigr)\,
        g(x)_q\Bigr)
    $$

    over the $Q$ positions of max-pooled $\phi$ and $g$. The scale of the norm starts at zero, so
    that the block begins by adding nothing. The norm is that of the batch, in evaluation too.

    Args:
        channels: C.
        reduction: The inner maps have C over this, at least 1.
        pool: Side of the pooling windows; those that would be cut off are left out.

    Examples:
        >>> x = torch.ones(2, 4, 3, 3)
        >>> torch.equal(Relation(4)(x), x)
        True
    """

    def __init__(self, channels: int, reduction: int = 2, pool: int = 2) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.pool = pool
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        # A bias would be taken away by the norm.
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        for conv in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        window = [min(self.pool, side) for side in x.shape[2:]]
        keys, values = (F.max_pool2d(conv(x), window).flatten(2) for conv in (self.phi, self.g))
        # No softmax stands between them: the small product comes first.
        mixed = (values @ keys.mT / keys.shape[2]) @ self.theta(x).flatten(2)
        added = standardised(
            self.out(mixed.unflatten(2, x.shape[2:])), (0, 2, 3), 1e-5, False, 'variance'
        )
        y: Tensor = x + added * self.scale[:, None, None] + self.shift[:, None, None]
        return y


class Connectors(nn.Module):
    """What is trained beside the student to compare one map of it with one of the teacher.

    Args:
        channels: C of both maps.
        reduction: See [`Relation`][].
        pool: See [`Relation`][].
    """

    def __init__(self, channels: int, reduction: int = 2, pool: int = 2) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, channels, 1)
        self.channel = nn.Linear(channels, channels)
        self.spatial = nn.Conv2d(1, 1, 3, padding=1)
        self.student_relation = Relation(channels, reduction, pool)
        self.teacher_relation = Relation(channels, reduction, pool)
        self.relation = nn.Conv2d(channels, channels, 1)


def fbkd_loss(
    student: Tensor,
    teacher: Tensor,
    connectors: Connectors,
    temperature: float = 0.5,
    published_batch: int | None = 2,
) -> dict[str, Tensor]:
    r"""Compare maps where both are active, their means, and each position's relation to all.

    With the attention $A(x) = H W\, \sigma\bigl(\tfrac{1}{T C} \sum_c |x_c|\bigr)$ of a map, the
    [`Relation`][]s $r_s$ and $r_t$, and a trained layer $a$ for each part, the parts are

    $$
    \text{masked} = \Bigl(\tfrac{B}{N} \sum_{n, c, p} \tfrac{A_p(s) + A_p(t)}{2}
        (a(s)_{c, p} - t_{c, p})^2\Bigr)^{1/2}
    $$

    $$
    \text{channel} = \Bigl(\tfrac{B}{N} \sum_n \|a(\mathrm{mean}_p\, s) - \mathrm{mean}_p\,
        t\|^2\Bigr)^{1/2}, \qquad
    \text{spatial} = \Bigl(\tfrac{B}{N} \sum_n \|a(\mathrm{mean}_c\, s) - \mathrm{mean}_c\,
        t\|^2\Bigr)^{1/2}
    $$

    $$
    \text{relation} = \Bigl(\tfrac{B}{N} \sum_n \|a(r_s(s)) - r_t(t)\|^2\Bigr)^{1/2}
    $$

    The authors take the root of a sum over the images of a GPU, so that their weights belong to
    $B = 2$ images. N are the images of all processes. No gradient flows through the attention.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        connectors: The trained layers, in the dtype of the maps (float32 for half precision).
        temperature: $T > 0$; higher spreads the attention.
        published_batch: $B$; ``None`` sums over the images, as the authors' code does.

    Returns:
        The four parts by name, without weights; scalars, at least float32.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Examples:
        >>> maps = torch.zeros(2, 4, 5, 6)
        >>> list(fbkd_loss(maps, maps, Connectors(4)))
        ['masked', 'channel', 'spatial', 'relation']
    """
    check_same_shape('fbkd_loss', student, teacher)
    check_temperature(temperature)
    check_published_batch('fbkd_loss', published_batch)
    with without_autocast(student):
        s, t = at_least_float32(student), at_least_float32(teacher.detach())
        ours, theirs = (spatial_attention(x, temperature) for x in (s.detach(), t))
        focus = (ours + theirs) / 2
        pairs = dict(
            masked=(connectors.features(s), t),
            channel=(connectors.channel(s.mean((2, 3))), t.mean((2, 3))),
            spatial=(connectors.spatial(s.mean(1, keepdim=True)), t.mean(1, keepdim=True)),
            relation=(
                connectors.relation(connectors.student_relation(s)),
                connectors.teacher_relation(t),
            ),
        )
        totals = [
            ((ours - theirs).square().sum(1) * focus).sum()
            if part == 'masked'
            else F.mse_loss(ours, theirs, reduction='sum')
            for part, (ours, theirs) in pairs.items()
        ]
        roots = root_over_ranks(
            torch.stack(totals), len(s), len(s) if published_batch is None else published_batch
        )
    return dict(zip(pairs, roots, strict=True))


class FBKDLoss(DistillLoss):
    """Module form of [`fbkd_loss`][]: all maps of a pyramid, each with connectors of its own.

    The parts are multiplied by weights of their own, and all by ``weight``. The defaults are those
    of the authors' code (MIT), and of mmrazor (Apache-2.0) for the levels of Faster R-CNN that
    have strides 4 to 32. mmrazor pools twice: what it calls a stride of 8 is 16 here.

    Args:
        teacher_channels: Width of each map.
        weight: Factor on the result.
        masked: Factor on the part of that name.
        channel: Likewise.
        spatial: Likewise.
        relation: Likewise.
        temperature: See [`fbkd_loss`][].
        published_batch: See [`fbkd_loss`][].
        reductions: Of the [`Relation`][]s, map by map; the last one is that of the rest.
        pools: Likewise.

    Raises:
        ValueError: If a weight is negative, or an argument out of range.

    Examples:
        >>> loss = FBKDLoss(teacher_channels=[8, 8])
        >>> sizes = (2, 8, 16, 16), (2, 8, 8, 8)
        >>> student = [torch.randn(size, requires_grad=True) for size in sizes]
        >>> parts = loss(student, [torch.randn(size) for size in sizes])
        >>> sum(parts.values()).backward()
        >>> student[1].grad.shape
        torch.Size([2, 8, 8, 8])
    """

    parts = PARTS
    all_maps = True

    def __init__(
        self,
        teacher_channels: Sequence[int],
        weight: float = 1.0,
        masked: float = 7e-5,
        channel: float = 4e-3,
        spatial: float = 4e-3,
        relation: float = 7e-5,
        temperature: float = 0.5,
        published_batch: int | None = 2,
        reductions: Sequence[int] = (4, 4, 2, 2),
        pools: Sequence[int] = (16, 8, 4, 4),
    ) -> None:
        super().__init__(weight)
        self.weights = check_weights(
            'FBKDLoss', masked=masked, channel=channel, spatial=spatial, relation=relation
        )
        check_temperature(temperature)
        check_published_batch('FBKDLoss', published_batch)
        for name, values in (('reductions', reductions), ('pools', pools)):
            if not values or not all(type(x) is int and x >= 1 for x in values):
                raise ValueError(f'FBKDLoss expects {name} as numbers >= 1, got {values!r}')
        self.temperature = temperature
        self.published_batch = published_batch
        self.connectors = nn.ModuleList(
            Connectors(
                channels,
                reductions[min(level, len(reductions) - 1)],
                pools[min(level, len(pools) - 1)],
            )
            for level, channels in enumerate(teacher_channels)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compare pyramids.

        Args:
            student: Maps ``(N, C, H, W)``.
            teacher: As many maps of the same shapes.

        Returns:
            The four parts by name, each the sum over the maps.

        Raises:
            ValueError: If the maps are not as many as there are connectors, or shapes differ.
        """
        if not len(student) == len(teacher) == len(self.connectors):
            raise ValueError(
                f'FBKDLoss(teacher_channels=...) of {len(self.connectors)} maps expects as many, '
                f'got {len(student)} of the student and {len(teacher)} of the teacher'
            )
        levels = [
            fbkd_loss(s, t, cast(Connectors, one), self.temperature, self.published_batch)
            for s, t, one in zip(student, teacher, self.connectors, strict=True)
        ]
        return {
            part: self.weight * factor * torch.stack([level[part] for level in levels]).sum()
            for part, factor in self.weights.items()
        }
