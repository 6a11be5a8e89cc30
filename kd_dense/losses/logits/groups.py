"""Classes in two groups: how they share the probability, and how each group shares its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_dense.functional import NO_LOGIT, softened
from kd_dense.losses.logits.rows import Rows, map_blocks

__all__ = ['group_kl']


def group_kl(
    rows: Rows,
    members: Tensor,
    between: float = 0.0,
    inside: float = 0.0,
    outside: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""Compare two distributions in three parts: between two groups, and within each.

    With the distributions $p$ of the teacher and $q$ of the student at temperature T, a group
    $G$ and all other classes $R$, and the share $p_G$ of all members,

    $$
    T^2 \bigl[ w_b \mathrm{KL}\bigl((p_G, p_R) \,\|\, (q_G, q_R)\bigr)
    + w_i \mathrm{KL}(p_{\cdot | G} \,\|\, q_{\cdot | G})
    + w_o \mathrm{KL}(p_{\cdot | R} \,\|\, q_{\cdot | R}) \bigr]
    $$

    With the weights 1, $p_G$ and $p_R$ it is the divergence of the two distributions. No part
    takes a difference from 1 or masks a class with a large number, so that it is exact wherever
    the logits are.

    Args:
        rows: Logits of student and teacher, ``(N, K, H, W)``.
        members: The classes of the group at each position, ``(N, g, H, W)`` with
            ``1 <= g < K``, each once.
        between: $w_b$.
        inside: $w_i$.
        outside: $w_o$.
        temperature: T.

    Returns:
        ``(N, H, W)``, at least float32, never negative.

    Examples:
        >>> logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0]]).view(2, 1, 3, 1, 1)
        >>> first = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        >>> group_kl(Rows(*logits), first, between=1.0)
        tensor([[[0.2291]]])
    """
    value: Tensor = _GroupKL.apply(*rows, members, (between, inside, outside), temperature)
    return value


class _GroupKL(torch.autograd.Function):
    """The gradient is computed with the value, block by block, and is all that is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        members: Tensor,
        weights: tuple[float, float, float],
        temperature: float,
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        precise = torch.float32 if student.device.type == 'mps' else torch.float64  # has none
        between, inside, outside = weights
        images, classes, *size = student.shape
        grad = torch.empty(student.shape, dtype=dtype, device=student.device)
        value = torch.empty((images, 1, *size), dtype=dtype, device=student.device)
        maps = (x.flatten(2) for x in (student, teacher, members, grad, value))
        for s, t, of, g, v in map_blocks(*maps, classes=classes, dtype=dtype):
            ours, theirs = (_split(softened(x.to(dtype), temperature), of) for x in (s, t))
            kl, difference, q = _divergence(ours.rest, theirs.rest)
            kl_in, difference_in, q_in = _divergence(ours.group, theirs.group)
            odds, their_odds = ours.odds.to(precise), theirs.odds.to(precise)
            p_of, q_of = their_odds.sigmoid(), odds.sigmoid()
            kl_of = p_of * (F.logsigmoid(their_odds) - F.logsigmoid(odds))
            kl_of += (1 - p_of) * (F.logsigmoid(-their_odds) - F.logsigmoid(-odds))
            torch.add(kl * outside, kl_in, alpha=inside, out=v).add_(kl_of.clamp_(min=0) * between)
            share = ((q_of - p_of) * between).to(dtype)
            torch.mul(difference, outside, out=g).addcmul_(q, share, value=-1)
            g.scatter_(1, of, difference_in.mul_(inside).addcmul_(q_in, share))
        ctx.save_for_backward(grad)
        ctx.temperature, ctx.dtype = temperature, student.dtype
        return value.mul_(temperature**2).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        rows = upstream[:, None] * ctx.temperature
        return (grad * rows).to(ctx.dtype), None, None, None, None


class _Split(NamedTuple):
    """Logarithms of probabilities within the others, ``(N, K, P)``, and within the group.

    The odds are the logarithm of the group's share over that of the others.
    """

    rest: Tensor
    group: Tensor
    odds: Tensor


def _split(x: Tensor, members: Tensor) -> _Split:
    """Split logits, of which members of the group are minus infinity among the others."""
    group, rest = x.gather(1, members), x.scatter(1, members, float('-inf'))
    log_rest, log_group = rest.log_softmax(1), group.log_softmax(1)
    # The largest entries tell the logarithm of what each softmax divided by.
    odds = group.amax(1, True) - log_group.amax(1, True)
    odds -= rest.amax(1, True) - log_rest.amax(1, True)
    return _Split(log_rest, log_group, odds)


def _divergence(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence of p from q, ``(N, 1, P)``; q - p, and q."""
    p, q = log_p.exp(), log_q.exp()
    difference = q - p
    log_ratio = log_p.clamp_(min=NO_LOGIT).sub_(log_q.clamp_(min=NO_LOGIT))
    # Not negative; and the sum of q - p is 0.
    kl = torch.addcmul(difference, p, log_ratio).sum(1, keepdim=True)
    return kl.clamp_(min=0), difference, q
