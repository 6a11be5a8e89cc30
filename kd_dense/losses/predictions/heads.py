"""What the losses on the predictions of dense heads have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, mean_over_ranks
from kd_dense.losses.ld.head_targets import HeadTargets
from kd_dense.losses.ld.ld import by_prior

__all__ = ['class_difference', 'focal_difference', 'positives', 'summed']


def positives(head_targets: HeadTargets) -> Tensor:
    """How many priors of a batch were assigned an object: the mean over processes, at least 1."""
    count = head_targets.positive.sum().to(head_targets.label_weights[0].dtype)
    return mean_over_ranks(count).clamp(min=1)


def summed(
    rows: Mapping[str, Tensor], parts: Sequence[str], maps: Sequence[Tensor]
) -> dict[str, Tensor]:
    """What all priors add to the parts; 0 for one that is switched off, with a gradient as well.

    Args:
        rows: What each prior adds, ``(N, A)``.
        parts: Their names.
        maps: What has a gradient.
    """
    zero = 0 * torch.stack([at_least_float32(x).sum() for x in maps]).sum()
    return {part: rows[part].sum() + zero if part in rows else zero for part in parts}


def class_difference(
    student: Sequence[Tensor], teacher: Sequence[Tensor], anchors: Sequence[int]
) -> Tensor:
    """Largest difference of a probability between the models, for each prior, ``(N, A)``.

    Without gradient.
    """
    levels = []
    for s, t, k in zip(student, teacher, anchors, strict=True):
        p, q = (at_least_float32(x.detach()).sigmoid().unflatten(1, (k, -1)) for x in (s, t))
        levels.append(by_prior((q - p).abs().amax(2)))
    return torch.cat(levels, 1)


def focal_difference(
    student: Sequence[Tensor], teacher: Sequence[Tensor], anchors: Sequence[int], beta: float = 1.0
) -> Tensor:
    r"""Cross-entropy of each class against none, more where the models differ, for each prior.

    With the probabilities $p = \mathrm{sigmoid}(s)$ and $q = \mathrm{sigmoid}(t)$,

    $$
    \sum_k |q_k - p_k|^\beta \bigl(-q_k \log p_k - (1 - q_k) \log(1 - p_k)\bigr)
    $$

    Args:
        student: Class logits ``(N, K * C, H, W)`` of each level.
        teacher: Same shapes. No gradient flows into it.
        anchors: K of each level.
        beta: $\beta \ge 1$.

    Returns:
        ``(N, A)``, at least float32.

    Examples:
        >>> maps = [torch.zeros(1, 1, 1, 2)], [torch.tensor([[[[0.0, 2.0]]]])]
        >>> focal_difference(*maps, anchors=[1])
        tensor([[0.0000, 0.2639]])
    """
    levels = [
        by_prior(_FocalDifference.apply(s, t, beta).unflatten(1, (k, -1)).sum(2))
        for s, t, k in zip(student, teacher, anchors, strict=True)
    ]
    return torch.cat(levels, 1)


class _FocalDifference(torch.autograd.Function):
    """Of each logit, with its gradient: one map is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, beta: float) -> Tensor:
        x, q = at_least_float32(student), at_least_float32(teacher).sigmoid()
        p = x.sigmoid()
        apart = p - q
        value = F.binary_cross_entropy_with_logits(x, q, reduction='none')
        weight = apart.abs() if beta == 1 else apart.abs().pow(beta)
        # d/dx of the weight is beta |p - q|^(beta - 1) sign(p - q) p (1 - p); of the rest p - q.
        slope = apart.sign() if beta == 1 else beta * apart.abs().pow(beta - 1) * apart.sign()
        grad = slope.mul_(p).mul_(1 - p).mul_(value).addcmul_(weight, apart)
        ctx.save_for_backward(grad.to(student.dtype))
        return value.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * upstream.to(grad.dtype), None, None
