"""Counts, sums and statistics of a batch that is spread over the processes of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from kd_dense.functional.checks import at_least_float32, check_choice

__all__ = [
    'gather_over_ranks',
    'mean_and_std',
    'mean_over_ranks',
    'standardised',
    'sum_over_ranks',
]

EpsOn = Literal['std', 'variance']


def mean_over_ranks(count: Tensor) -> Tensor:
    """Average a count over the processes of a distributed training.

    A loss divided by the mean count, then averaged over processes as gradients are, equals
    the loss of one process that holds the whole batch.

    Args:
        count: Any tensor of the same shape on all processes. No gradient flows through it.

    Returns:
        The mean, as a tensor of the same shape; ``count`` itself in a single process.

    Examples:
        >>> mean_over_ranks(torch.tensor(3.0))
        tensor(3.)
    """
    count = count.detach()
    if not _several_processes():
        return count
    mean = count / distributed.get_world_size()
    distributed.all_reduce(mean)
    return mean


def sum_over_ranks(x: Tensor) -> Tensor:
    """Add up a tensor over the processes of a distributed training.

    Gradients are added up as well. After DDP has averaged those of the parameters, they are what
    one process finds that holds the whole batch: of a loss of the sum, which is the same in all
    processes, and of a mean over the processes of losses that each take part of the sum.

    Args:
        x: Of the same shape and dtype on all processes.

    Returns:
        The sum, of the same shape; ``x`` itself in a single process.

    Examples:
        >>> sum_over_ranks(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if not _several_processes():
        return x
    total: Tensor = _SumOverRanks.apply(x)
    return total


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        total = upstream.contiguous().clone()
        distributed.all_reduce(total)
        return total


def gather_over_ranks(x: Tensor) -> Tensor:
    """Put the batches of all processes behind each other.

    Gradients flow to all of them. After DDP has averaged those of the parameters, they are what
    one process finds that holds the whole batch: of a loss of the gathered batch, which is the
    same in all processes, and of a mean over the processes of losses that each take its own rows
    of it.

    Args:
        x: ``(N, ...)``, of the same shape and dtype on all processes.

    Returns:
        ``(W N, ...)`` with W processes, in their order; ``x`` itself in a single process.

    Examples:
        >>> gather_over_ranks(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if not _several_processes():
        return x
    gathered: Tensor = _GatherOverRanks.apply(x)
    return gathered


class _GatherOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.images = len(x)
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        total = upstream.contiguous().clone()
        distributed.all_reduce(total)
        return total.narrow(0, distributed.get_rank() * ctx.images, ctx.images)


@torch.no_grad()
def mean_and_std(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, of n - 1; with 0 among ``dims``, of all processes together.

    Args:
        x: Of any shape and float dtype. No gradient flows through it.
        dims: The dimensions that they are taken over.

    Returns:
        Both, with these dimensions of length 1, at least float32.

    Examples:
        >>> mean_and_std(torch.tensor([[1.0, 2.0, 3.0]]), dims=[1])
        (tensor([[2.]]), tensor([[1.]]))
    """
    dims = tuple(sorted({dim % x.dim() for dim in dims}))
    x = at_least_float32(x)
    own = torch.Size([x.shape[dim] for dim in dims]).numel()
    mean = x.sum(dims, keepdim=True) / max(own, 1)
    squares = (x - mean).square().sum(dims, keepdim=True)
    count = torch.full_like(squares, own)
    if 0 in dims and _several_processes():
        count, mean, squares = _merged(count, mean, squares)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def standardised(
    x: Tensor,
    dims: Sequence[int],
    eps: float = 0.0,
    unbiased: bool = True,
    eps_on: EpsOn = 'std',
) -> Tensor:
    r"""Subtract the mean, and divide by the standard deviation.

    $$
    \frac{x - \mu}{\sqrt{v} + \epsilon} \quad \text{or} \quad
    \frac{x - \mu}{\sqrt{v + \epsilon}}
    $$

    With 0 among ``dims``, mean and variance are those of the batches of all processes together.

    Args:
        x: Of any shape and float dtype.
        dims: The dimensions that mean and variance are taken over.
        eps: $\epsilon \ge 0$.
        unbiased: Whether the squares are divided by n - 1 for the variance, rather than by n.
        eps_on: ``'std'`` adds $\epsilon$ to the standard deviation, as in the left formula,
            ``'variance'`` to the variance.

    Returns:
        A tensor of the same shape, at least float32: 0 where all values are equal.

    Raises:
        ValueError: If ``eps_on`` is neither of the two.

    Examples:
        >>> standardised(torch.tensor([[1.0, 2.0, 3.0]]), dims=[1])
        tensor([[-1.,  0.,  1.]])
        >>> standardised(torch.tensor([[7.0, 7.0]]), dims=[1])
        tensor([[0., 0.]])
    """
    check_choice('standardised', 'eps_on', eps_on, EpsOn)
    dims = tuple(sorted({dim % x.dim() for dim in dims}))
    value: Tensor = _Standardised.apply(at_least_float32(x), dims, eps, unbiased, eps_on)
    return value


class _Standardised(torch.autograd.Function):
    """What [`standardised`][] says, and its gradient, for which the result alone is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], eps: float, unbiased: bool, eps_on: EpsOn
    ) -> Tensor:
        own = torch.Size([x.shape[dim] for dim in dims]).numel()
        # From the mean of this process; squares of large values would cancel.
        mean = x.sum(dims, keepdim=True) / max(own, 1)
        y = x - mean
        squares = y.square().sum(dims, keepdim=True)
        count = torch.full_like(squares, own)
        ctx.over_ranks = 0 in dims and _several_processes()
        if ctx.over_ranks:
            count, whole, squares = _merged(count, mean, squares)
            y += mean - whole
        freedom = (count - int(unbiased)).clamp(min=1)
        variance = squares / freedom
        # A root has no slope at 0: there neither value nor gradient depend on it.
        spread = variance > 0
        safe = torch.where(spread, variance, 1)
        if eps_on == 'variance':
            scale = (variance + eps if eps > 0 else safe).rsqrt()
            slope = scale / freedom
        else:
            scale = 1 / torch.where(spread, safe.sqrt() + eps, eps or 1)
            slope = torch.where(spread, 1 / (freedom * safe.sqrt()), 0)
        y *= scale
        ctx.save_for_backward(y, scale, slope, count)
        ctx.dims = dims
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        y, scale, slope, count = ctx.saved_tensors
        sums = torch.stack([one.sum(ctx.dims, keepdim=True) for one in (upstream, upstream * y)])
        if ctx.over_ranks:
            distributed.all_reduce(sums)
        grad = upstream * scale
        grad -= scale * sums[0] / count.clamp(min=1)
        grad.addcmul_(y, slope * sums[1], value=-1)
        return grad, None, None, None, None


def _merged(count: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and squares around it of all processes, from those of each (Chan et al.)."""
    own = torch.stack([count, mean, squares])
    rank = torch.arange(distributed.get_world_size(), device=own.device).view(-1, *[1] * own.dim())
    counts, means, sums = sum_over_ranks(
        torch.where(rank == distributed.get_rank(), own, 0)
    ).unbind(1)
    total = counts.sum(0)
    whole = (counts / total.clamp(min=1) * means).sum(0)
    return total, whole, (sums + counts * (means - whole).square()).sum(0)


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()
