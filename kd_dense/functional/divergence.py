"""The divergence of softened distributions, with its gradient.

On a CPU, in blocks that fit into its cache; elsewhere, and compiled, in few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_dense.functional.checks import at_least_float32

__all__ = [
    'NO_LOGIT',
    'better_together',
    'for_cache',
    'in_blocks',
    'soft_cross_entropy',
    'soft_kl',
    'soft_kl_total',
    'softened',
    'two_class_logits',
]

# How large a block is: in bytes where a few have to fit into a cache, in numbers where each number
# is work for one of many threads.
CPU_BLOCK_BYTES = 2**20
GPU_BLOCK_NUMBERS = 2**25
CACHED = 'cpu'  # the kind of device
# Maps are compared together, which takes the space of three copies, where they are no more.
TOGETHER_NUMBERS = 2**26
# The logit of no probability, as a number whose differences are numbers.
NO_LOGIT = -1e30


def for_cache(x: Tensor) -> bool:
    """Whether work on a tensor is best done block by block, with care for a CPU's cache.

    Elsewhere the number of steps counts, and a compiler makes its own blocks.

    Examples:
        >>> for_cache(torch.zeros(1)), for_cache(torch.zeros(1, device='meta'))
        (True, False)
    """
    return x.device.type == CACHED and not torch.compiler.is_compiling()


def better_together(maps: Sequence[Tensor]) -> bool:
    """Whether maps are best laid side by side: not for a cache, and where there is room.

    Examples:
        >>> better_together([torch.zeros(2)]), better_together([torch.zeros(2, device='meta')])
        (False, True)
    """
    if torch.compiler.is_compiling() or for_cache(maps[0]):
        return False
    return sum(x.numel() for x in maps) <= TOGETHER_NUMBERS


def in_blocks(
    *tensors: Tensor, dim: int, width: int, dtype: torch.dtype, least: int = 1
) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors alike along one dimension, so that the work on a block is fast.

    On a CPU a few blocks fit into its cache, so that the many passes over a block are not passes
    over the memory. Elsewhere a block is large enough to keep the device busy.

    Args:
        tensors: Equally long along ``dim``.
        dim: The dimension that is cut.
        width: How many numbers the work makes of each position along ``dim``.
        dtype: What these numbers are.
        least: Positions of a block, even where they are more than fit.

    Yields:
        One block of each tensor.

    Examples:
        >>> maps = torch.zeros(2, 30_000)
        >>> for x, y in in_blocks(maps, maps.long(), dim=1, width=20, dtype=maps.dtype):
        ...     print(*x.shape, *y.shape)
        2 13107 2 13107
        2 13107 2 13107
        2 3786 2 3786
    """
    small = for_cache(tensors[0])
    numbers = CPU_BLOCK_BYTES // dtype.itemsize if small else GPU_BLOCK_NUMBERS
    size = max(numbers // max(width, 1), least)
    if torch.compiler.is_compiling() or size >= tensors[0].shape[dim]:
        yield tensors
    else:
        yield from zip(*(x.split(size, dim) for x in tensors), strict=True)


def two_class_logits(logits: Tensor) -> Tensor:
    r"""Spell out the logit of one class as those of two, so that a softmax says what it means.

    A head with one channel, as for binary segmentation, yields a Bernoulli logit $z$, and
    $\mathrm{sigmoid}(z)$ is the softmax of the two logits $(0, z)$. Of one channel alone a softmax
    is 1 whatever $z$ is, and a loss of it 0 without gradient.

    Args:
        logits: ``(N, C, ...)``.

    Returns:
        ``(N, 2, ...)`` where C is 1, else the logits as they are.

    Examples:
        >>> z = torch.tensor([[0.0], [2.0]])
        >>> two_class_logits(z)
        tensor([[0., 0.],
                [0., 2.]])
        >>> torch.equal(two_class_logits(z).softmax(1)[:, 1:], z.sigmoid())
        True
        >>> two_class_logits(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    if logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


def soft_kl(
    student: Tensor, teacher: Tensor, temperature: float, dim: int, factor: float = 1.0
) -> Tensor:
    r"""Compare two softened distributions along one dimension.

    $$
    T^2 \sum_i \sigma(t / T)_i \bigl(\log\, \sigma(t / T)_i - \log\, \sigma(s / T)_i\bigr)
    $$

    The factor $T^2$ keeps the size of the gradient independent of the temperature
    (Hinton et al., 2015). It is never negative, exactly 0 for equal logits, and finite where
    ``softmax().log()`` is not.

    Args:
        student: Logits of any shape and float dtype.
        teacher: Logits of the same shape. No gradient flows into it.
        temperature: $T$, ``> 0``; higher is softer.
        dim: The dimension that holds one distribution.
        factor: On each divergence.

    Returns:
        Divergence in nats, at least float32, with ``dim`` removed.

    Examples:
        >>> soft_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=4.0, dim=1)
        tensor([0., 0.])
    """
    divergence: Tensor = _SoftKL.apply(student, teacher, temperature, dim, factor)
    return divergence


class _SoftKL(torch.autograd.Function):
    """What [`soft_kl`][] says, and its gradient.

    With the distributions p of the teacher and q of the student, the gradient by the student
    is T (q - p). It is computed with the value, block by block, so that the work space is a few
    blocks, and the one map that is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        temperature: float,
        dim: int,
        factor: float,
    ) -> Tensor:
        shape, dim = student.shape, dim % student.dim()
        before, bins, after = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
        # PyTorch is faster where a distribution is the last dimension.
        view = (before, bins, after) if after != 1 else (before, bins)
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        grad = torch.empty(view, dtype=dtype, device=student.device)
        value = torch.empty((before, 1, *view[2:]), dtype=dtype, device=student.device)

        maps = (student.reshape(view), teacher.reshape(view), grad, value)
        careful = for_cache(student)
        work: list[Tensor] | None = [] if careful else None
        for s, t, g, v in _blocks(*maps, dtype=dtype):
            if work is None:
                _compare(s.to(dtype), t.to(dtype), temperature, g, v)
            else:
                _compare_with_care(s.to(dtype), t.to(dtype), temperature, g, v, work)

        ctx.save_for_backward(grad)
        ctx.factor = factor * (temperature if careful else -temperature)
        ctx.shape, ctx.dtype = shape, student.dtype
        return value.mul_(temperature**2 * factor).view(shape[:dim] + shape[dim + 1 :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        rows = upstream.reshape(len(grad), 1, *grad.shape[2:]) * ctx.factor
        return (grad * rows).to(ctx.dtype).view(ctx.shape), None, None, None, None


def _compare_with_care(
    s: Tensor, t: Tensor, temperature: float, g: Tensor, v: Tensor, work: list[Tensor]
) -> None:
    """Put q - p into ``g`` and the divergence into ``v``, with a dozen steps through a cache.

    Args:
        s: Logits of the student, ``(rows, bins, ...)``.
        t: Of the teacher.
        temperature: Of both.
        g: As large as these.
        v: With one bin.
        work: Empty at the first block, which is the largest; it keeps the work space.
    """
    constants = torch.float32 if s.device.type == 'mps' else torch.float64  # has none
    if not work:
        work.append(g.new_empty(3, s.numel()))
    scaled, log_ratio, p = work[0][:, : s.numel()].unflatten(1, s.shape)
    if temperature != 1:
        s = torch.div(s, temperature, out=scaled)
        t = torch.div(t, temperature, out=log_ratio)
    q = torch.softmax(s, 1, out=g)
    torch.softmax(t, 1, out=p)
    # The largest entries tell the logarithm of what each softmax divided by.
    s_top, t_top, q_top, p_top = (x.amax(1, keepdim=True) for x in (s, t, q, p))
    t_top, q_top = t_top.to(constants), q_top.to(constants)
    # log p - log q is the difference of the logits, each measured from the largest, less
    # a constant, which is rounded here and put right below.
    constant = t_top.add_((q_top / p_top).log_())
    rounded = constant.to(g.dtype)
    torch.sub(t, rounded, out=log_ratio)
    log_ratio.sub_(torch.sub(s, s_top, out=scaled))
    g.sub_(p)  # in place of q
    # p log(p / q) + q - p, which is not negative. The sum of q - p is 0, but cancels the
    # errors of first order: of the logarithms, and of sums that are not quite 1.
    torch.sum(torch.addcmul(g, p, log_ratio, out=log_ratio), 1, keepdim=True, out=v)
    v.sub_(constant.sub_(rounded)).clamp_(min=0)


def _compare(s: Tensor, t: Tensor, temperature: float, g: Tensor, v: Tensor) -> None:
    """Put p - q into ``g`` and the divergence into ``v``, in as few steps as there can be.

    In float32 the divergence of a row is off by some 1e-6.
    """
    log_q, log_p = (softened(x, temperature).log_softmax(1) for x in (s, t))
    difference = log_p - log_q
    p = log_p.exp_()
    torch.sum(difference.mul_(p), 1, keepdim=True, out=v).clamp_(min=0)
    _into_logits(p, log_q, 1, g)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature, at least float32."""
    logits = at_least_float32(logits)
    return logits if temperature == 1 else logits / temperature


def _into_logits(p: Tensor, log_q: Tensor, dim: int, out: Tensor) -> None:
    """Put p - q into a tensor, which is what the gradient p by log q is by the logits."""
    torch.ops.aten._log_softmax_backward_data.out(p, log_q, dim, log_q.dtype, out=out)


def soft_kl_total(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    temperature: float,
    dim: int,
    factor: float = 1.0,
) -> Tensor:
    """Add up [`soft_kl`][] over all distributions of several maps.

    Args:
        students: Logits, each of any shape, of one float dtype.
        teachers: Logits of the same shapes. No gradient flows into them.
        temperature: As of [`soft_kl`][].
        dim: The dimension of each that holds one distribution.
        factor: On the sum.

    Returns:
        A scalar, at least float32. On a GPU it takes half the steps of one map after the other.

    Examples:
        >>> maps = torch.zeros(2, 3), torch.zeros(5, 4)
        >>> soft_kl_total(maps, maps, temperature=4.0, dim=1)
        tensor(0.)
    """
    alike = len({x.dtype for x in (*students, *teachers)}) == 1
    if not (alike and better_together(students)):
        maps = zip(students, teachers, strict=True)
        totals = [soft_kl(*both, temperature, dim).sum() for both in maps]
        return factor * (torch.stack(totals).sum() if len(totals) > 1 else totals[0])
    teachers = [x.detach() for x in teachers]
    total: Tensor = _Total.apply(temperature, dim, False, factor, teachers, *students)
    return total


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, factor: float = 1.0
) -> Tensor:
    r"""Add up [`soft_kl`][] over all distributions, and the teacher's entropies times $T^2$.

    Args:
        student: Logits, ``(N, K, ...)``: a distribution over the K of each position.
        teacher: Of the same shape. No gradient flows into it.
        temperature: Of both.
        factor: On the sum.

    Returns:
        A scalar, at least float32.

    Examples:
        >>> soft_cross_entropy(torch.zeros(3, 2), torch.zeros(3, 2), temperature=1.0)
        tensor(2.0794)
    """
    teacher = teacher.detach()
    if student.dtype == teacher.dtype and better_together([student]):
        total: Tensor = _Total.apply(temperature, 1, True, factor, [teacher], student)
        return total
    target = softened(teacher, temperature).softmax(1)
    logits = softened(student, temperature)
    return temperature**2 * factor * F.cross_entropy(logits, target, reduction='sum')


class _Total(torch.autograd.Function):
    """A sum over maps, and its gradient, for which a copy of the maps is kept.

    With ``entropy`` it is the cross entropy, else the divergence.
    """

    @staticmethod
    def forward(
        ctx: Any,
        temperature: float,
        dim: int,
        entropy: bool,
        factor: float,
        teachers: Sequence[Tensor],
        *students: Tensor,
    ) -> Tensor:
        dtype = torch.promote_types(students[0].dtype, torch.float32)
        laid_out = partial(_side_by_side, temperature=temperature, dim=dim)
        log_q, qs = laid_out([x.to(dtype) for x in students], torch.log_softmax)
        if entropy:
            p, ps = laid_out([x.to(dtype) for x in teachers], torch.softmax)
            grad, value = torch.empty_like(p), torch.dot(p, log_q)
        else:
            log_p, ps = laid_out([x.to(dtype) for x in teachers], torch.log_softmax)
            grad = log_p - log_q
            p = log_p.exp_()
            value = torch.dot(p, grad).clamp_(min=0)
        value *= temperature**2 * (-factor if entropy else factor)
        shapes = [x.shape for x in students]
        for each, q, out in zip(ps, qs, _views(grad, shapes), strict=True):
            _into_logits(each, q, dim, out)
        ctx.save_for_backward(grad)
        ctx.factor, ctx.shapes, ctx.dtype = -temperature * factor, shapes, students[0].dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        grads = _views(grad * (upstream * ctx.factor), ctx.shapes)
        return None, None, None, None, None, *(x.to(ctx.dtype) for x in grads)


def _side_by_side(
    maps: Sequence[Tensor], function: Callable[..., Tensor], temperature: float, dim: int
) -> tuple[Tensor, list[Tensor]]:
    """A function of all softened maps, one after the other ``(numbers,)``, and of each."""
    found = maps[0].new_empty(sum(x.numel() for x in maps))
    views = _views(found, [x.shape for x in maps])
    if temperature != 1:
        maps = torch._foreach_div([*maps], temperature)
    for x, out in zip(maps, views, strict=True):
        function(x, dim, out=out)
    return found, views


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Maps of these shapes, which lie one after the other."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _blocks(*maps: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """Cut maps ``(rows, bins)`` or ``(rows, bins, columns)`` alike, between distributions."""
    _, bins, *columns = maps[0].shape
    for rows in in_blocks(*maps, dim=0, width=bins * math.prod(columns), dtype=dtype):
        if columns:  # one row may be more than a block
            yield from in_blocks(*rows, dim=2, width=bins, dtype=dtype)
        else:
            yield rows
