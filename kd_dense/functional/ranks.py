"""Counts, sums and statistics of a batch that is spread over the processes of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from kd_dense.functional.checks import at_least_float32, check_choice
from kd_dense.functional.divergence import for_cache

__all__ = [
    'divide_over_ranks',
    'gather_over_ranks',
    'mean_and_std',
    'mean_over_ranks',
    'standardised',
    'standardised_together',
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


def divide_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """Divide what this process adds up by the mean count of all processes; by 1, where that is 0.

    Averaged over the processes, as gradients are, it is the mean of the whole batch.

    Args:
        total: Any tensor that ``count`` fits.
        count: Of the same shape on all processes, ``>= 0``. No gradient flows through it.

    Returns:
        Their quotient.

    Examples:
        >>> divide_over_ranks(torch.tensor([6.0, 0.0]), torch.tensor([4.0, 0.0]))
        tensor([1.5000, 0.0000])
    """
    count = mean_over_ranks(count)
    return total / count.where(count > 0, 1)


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
    (value,), _ = standardised_together([x], [], dims, eps, unbiased, eps_on)
    return value


def standardised_together(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    dims: Sequence[int],
    eps: float = 0.0,
    unbiased: bool = True,
    eps_on: EpsOn = 'std',
) -> tuple[list[Tensor], list[Tensor]]:
    """Standardise several tensors, each alone, in as many steps on statistics as of one.

    In several processes the statistics of all travel in one message.

    Args:
        students: As the argument of [`standardised`][], with as many dimensions each.
        teachers: Likewise. No gradient flows into them.
        dims: As of [`standardised`][], with all other arguments.
        eps: Likewise.
        unbiased: Likewise.
        eps_on: Likewise.

    Returns:
        The students and the teachers, standardised.

    Raises:
        ValueError: As of [`standardised`][].

    Examples:
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> standardised_together([x], [2 * x, 0 * x], dims=[1])[1]
        [tensor([[-1.,  0.,  1.]]), tensor([[0., 0., 0.]])]
    """
    check_choice('standardised', 'eps_on', eps_on, EpsOn)
    maps = [at_least_float32(x) for x in (*students, *(x.detach() for x in teachers))]
    dims = tuple(sorted({dim % maps[0].dim() for dim in dims}))
    count = len(students)
    found = _Standardised.apply(dims, eps, unbiased, eps_on, count, *maps)
    return [*found[:count]], [x.detach() for x in found[count:]]


class _Standardised(torch.autograd.Function):
    """What [`standardised`][] says of maps, and its gradient by the first, who are ``taught``.

    The results alone are kept. The statistics of all maps lie one after the other.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dims: tuple[int, ...],
        eps: float,
        unbiased: bool,
        eps_on: EpsOn,
        taught: int,
        *maps: Tensor,
    ) -> tuple[Tensor, ...]:
        own = [torch.Size([x.shape[dim] for dim in dims]).numel() for x in maps]
        # From the mean of this process; squares of large values would cancel.
        if for_cache(maps[0]) or 0 in own:
            means = [
                x.mean(dims, keepdim=True) if n > 0 else x.sum(dims, keepdim=True)
                for x, n in zip(maps, own, strict=True)
            ]
            ys = [x - mean for x, mean in zip(maps, means, strict=True)]
            count = _counts(own, means)
            squares = _in_a_row([y.square().sum(dims) for y in ys])
        else:
            both = [torch.var_mean(x, dims, correction=0, keepdim=True) for x in maps]
            means = [mean for _, mean in both]
            ys = [x - mean for x, mean in zip(maps, means, strict=True)]
            count = _counts(own, means)
            squares = _in_a_row([variance for variance, _ in both]) * count
        shapes = [mean.shape for mean in means]
        ctx.over_ranks = 0 in dims and _several_processes()
        if ctx.over_ranks:
            mean = _in_a_row(means)
            count, whole, squares = _merged(count, mean, squares)
            for y, moved in zip(ys, _each(mean - whole, shapes), strict=True):
                y += moved
        freedom = (count - int(unbiased)).clamp(min=1)
        variance = squares / freedom
        # A root has no slope at 0: there neither value nor gradient depend on it.
        flat = variance == 0
        root = variance.masked_fill(flat, 1).sqrt()
        if eps_on == 'variance':
            scale = (variance + eps).rsqrt() if eps > 0 else root.reciprocal()
            slope = scale / freedom
        else:
            scale = ((root + eps).masked_fill(flat, eps) if eps > 0 else root).reciprocal()
            slope = (freedom * root).reciprocal()
        for y, factor in zip(ys, _each(scale, shapes), strict=True):
            y *= factor
        ctx.shapes, ctx.dims = shapes[:taught], dims
        length = sum(shape.numel() for shape in ctx.shapes)
        ctx.save_for_backward(*(x[:length] for x in (scale, slope, count)), *ys[:taught])
        ctx.set_materialize_grads(False)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        scale, slope, count, *ys = ctx.saved_tensors
        given = [
            torch.zeros_like(y) if x is None else x for x, y in zip(upstream, ys, strict=False)
        ]
        sums = [x.sum(ctx.dims) for x in given]
        sums += [(x * y).sum(ctx.dims) for x, y in zip(given, ys, strict=True)]
        both = _in_a_row(sums).view(2, -1)
        if ctx.over_ranks:
            distributed.all_reduce(both)
        shift = scale * both[0] / -count.clamp(min=1)
        small = (_each(x, ctx.shapes) for x in (scale, shift, slope * both[1]))
        grads = []
        for x, y, factor, more, lever in zip(given, ys, *small, strict=True):
            # On a CPU two steps are faster.
            moved = (x * factor).add_(more) if for_cache(x) else torch.addcmul(more, x, factor)
            grads.append(moved.addcmul_(y, lever, value=-1))
        return None, None, None, None, None, *grads, *[None] * (len(upstream) - len(ys))


def _in_a_row(tensors: Sequence[Tensor]) -> Tensor:
    """The numbers of all tensors, ``(n,)``."""
    if len(tensors) == 1:
        return tensors[0].flatten()
    return torch.cat([x.flatten() for x in tensors])


def _each(row: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors of these shapes, whose numbers are in a row."""
    parts = row.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _counts(counts: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    """The count of each tensor for each of its numbers, in a row."""
    like = tensors[0]
    sizes = [x.numel() for x in tensors]
    if len({*counts}) == 1:
        return like.new_full((sum(sizes),), counts[0])
    both = zip(sizes, counts, strict=True)
    rows = [torch.full((size,), count, dtype=like.dtype) for size, count in both]
    return torch.cat(rows).to(like.device, non_blocking=True)


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
