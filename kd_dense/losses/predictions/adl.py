"""Adaptive distillation (ADL).

Tang et al., "Learning Efficient Detector with Semi-supervised Adaptive Distillation", BMVC 2019.
https://arxiv.org/abs/1901.00366
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, mean_over_ranks
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.ld.head_targets import HeadTargets, anchors_of
from kd_dense.losses.ld.ld import by_prior
from kd_dense.losses.predictions.heads import positives

__all__ = ['ADLLoss', 'adl_loss']


def adl_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    alpha: float = 0.5,
    gamma: float = 2.0,
    entropy: float = 0.0,
    power: float | None = 1.8,
    normaliser: Tensor | float | None = None,
) -> Tensor:
    r"""Match each class against none, more where it is far from the teacher's.

    With the probabilities p of the student and q of the teacher, of every class of every prior,

    $$
    \frac1n \sum \bigl(1 - e^{-D}\bigr)^\gamma
        \bigl(-\alpha\, q \log p - (1 - \alpha)(1 - q) \log(1 - p)\bigr),
    \qquad D = \mathrm{BCE}(p, q) + \beta\,\bigl(q \log q + (1 - q) \log(1 - q)\bigr)
    $$

    The weight in front has a gradient too. With $\beta = 1$, D is the divergence of the paper; the
    authors' code ships with 0, so that a prior counts of which the teacher itself is not sure.

    Args:
        student: What the head yields: the first L maps are class logits
            ``(N, K * num_classes, H, W)``, one for each level.
        teacher: The same of the teacher's head. No gradient flows into it.
        head_targets: What the student's head computed for its own loss: priors whose label weight
            is 0 do not count.
        alpha: $\alpha$, 0 to 1: how much the classes that are there count against those that are
            not.
        gamma: $\gamma \ge 1$.
        entropy: $\beta \ge 0$.
        power: n is the sum of $q^\mathrm{power}$, at least 1; or, if ``None``, the positives.
        normaliser: n, where it is neither.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.

    Examples:
        >>> targets = HeadTargets(
        ...     priors=[torch.tensor([[4.0, 4.0]])],
        ...     labels=[torch.tensor([[0]])],
        ...     label_weights=[torch.ones(1, 1)],
        ...     valid=[torch.ones(1, 1, dtype=torch.bool)],
        ...     boxes=[torch.tensor([[0.0, 0.0, 8.0, 8.0]])],
        ...     num_classes=1,
        ...     strides=[8],
        ... )
        >>> adl_loss([torch.zeros(1, 1, 1, 1)], [torch.full((1, 1, 1, 1), 2.0)], targets)
        tensor(0.0866)
    """
    _check_arguments('adl_loss', alpha, gamma, entropy, power)
    return adl_rows(student, teacher, head_targets, alpha, gamma, entropy, power, normaliser).sum()


def adl_rows(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    alpha: float,
    gamma: float,
    entropy: float,
    power: float | None,
    normaliser: Tensor | float | None = None,
) -> Tensor:
    """What each prior adds to the loss, ``(N, A)``."""
    anchors = anchors_of(student, teacher, head_targets, kinds=1)
    rows = []
    normal = torch.zeros((), device=student[0].device)
    for x, t, k in zip(student, teacher, anchors, strict=False):
        s, q = at_least_float32(x), at_least_float32(t.detach()).sigmoid()
        yes, no = -F.logsigmoid(s), -F.logsigmoid(-s)
        apart = q * yes + (1 - q) * no
        if entropy > 0:
            apart = apart + entropy * (torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q))
        factor = (-torch.expm1(-apart.clamp(min=0))).pow(gamma)
        values = factor * (alpha * q * yes + (1 - alpha) * (1 - q) * no)
        rows.append(by_prior(values.unflatten(1, (k, -1)).sum(2)))
        if power is not None:
            normal = normal + q.pow(power).sum()
    if normaliser is None:
        n = positives(head_targets) if power is None else mean_over_ranks(normal).clamp(min=1)
    else:
        n = torch.as_tensor(normaliser).clamp(min=1)
    counted = torch.cat(head_targets.label_weights, 1) > 0
    return torch.cat(rows, 1) * counted / n


class ADLLoss(DistillLoss):
    """Module form of [`adl_loss`][], times ``weight``; its tap is the dense head.

    The defaults are those of the authors' configs for RetinaNet.

    Args:
        weight: Factor on the result.
        alpha: See [`adl_loss`][], as the other arguments.

    Examples:
        >>> ADLLoss(entropy=1.0).needs
        ('head_targets',)
    """

    needs = ('head_targets',)
    all_maps = True
    any_channels = True
    adaptable = False

    def __init__(
        self,
        weight: float = 1.0,
        alpha: float = 0.5,
        gamma: float = 2.0,
        entropy: float = 0.0,
        power: float | None = 1.8,
    ) -> None:
        super().__init__(weight)
        _check_arguments('ADLLoss', alpha, gamma, entropy, power)
        self.settings: dict[str, Any] = dict(
            alpha=alpha, gamma=gamma, entropy=entropy, power=power
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], head_targets: HeadTargets
    ) -> Tensor:
        return self.weight * adl_loss(student, teacher, head_targets, **self.settings)


def _check_arguments(
    owner: str, alpha: float, gamma: float, entropy: float, power: float | None
) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f'{owner} expects alpha from 0 to 1, got alpha={alpha}')
    if not gamma >= 1:
        raise ValueError(f'{owner} expects gamma >= 1, got gamma={gamma}')
    if not entropy >= 0:
        raise ValueError(f'{owner} expects entropy >= 0, got entropy={entropy}')
    if power is not None and not power > 0:
        raise ValueError(f'{owner} expects power > 0 or None, got power={power}')
