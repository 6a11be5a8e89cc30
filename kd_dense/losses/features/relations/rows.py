"""A sum over rows of a matrix of affinities, which is not made whole where it is large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_dense.functional import at_least_float32, gather_over_ranks, in_blocks

__all__ = ['image_gram', 'pooled', 'products', 'sum_over_rows', 'vectors_of']

# Rows of a block, even where their affinities are more than fit into a cache: a product of
# matrices is fast where both are large.
LEAST_ROWS = 512
# Numbers that are added up in one go, in a product of long vectors.
LEAST_SUM = 2**15

# Of blocks of the rows and of all vectors that they meet, the student's first in both, what
# the rows of each group add.
OfRows = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def sum_over_rows(function: OfRows, rows: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Add up what each row of a matrix is worth.

    Where the matrix is larger than the vectors, it is made a block of rows at a time, and the
    gradient is computed with the value: what is kept for the backward pass is as large as the
    vectors then, and not as the matrix.

    Args:
        function: Given a block of ``rows`` and the same groups of ``others``, what these rows
            add to each group, ``(G',)``.
        rows: Vectors ``(G, m, d)``, a row of the matrix each. A gradient flows into the first, if
            it requires one.
        others: Vectors ``(G, n, d)``, a column each. Likewise.

    Returns:
        ``(G,)``.

    Examples:
        >>> x = torch.ones(1, 3, 2)
        >>> sum_over_rows(lambda rows, all: products(rows[0], all[0]).sum((1, 2)), [x], [x])
        tensor([18.])
    """
    # A compiler differentiates by itself.
    if others[0].shape[1] <= rows[0].shape[2] or torch.compiler.is_compiling():
        return function(rows, others)
    value: Tensor = _SumOverRows.apply(function, len(rows), *rows, *others)
    return value


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: OfRows, count: int, *vectors: Tensor) -> Tensor:
        rows, others = vectors[:count], vectors[count:]
        needs = [ctx.needs_input_grad[place] for place in (2, 2 + count)]
        needed = any(needs)
        value = rows[0].new_zeros(len(rows[0]))
        grads = [torch.zeros_like(x) if needed else x for x in (rows[0], others[0])]
        height, width = rows[0].shape[1], others[0].shape[1]
        cut = (*rows, *others, *grads, value)
        dtype = value.dtype
        for groups in in_blocks(*cut, dim=0, width=height * width, dtype=dtype):
            *group, into_rows, into_others, out = groups
            size = len(out) * width
            least = min(height, LEAST_ROWS)
            for *block, grad in in_blocks(
                *group[:count], into_rows, dim=1, width=size, dtype=dtype, least=least
            ):
                if not needed:
                    out += function(block, group[count:])
                    continue
                pair = zip((block[0], group[count]), needs, strict=True)
                leaves = [x.detach().requires_grad_(need) for x, need in pair]
                with torch.enable_grad():
                    some = function([leaves[0], *block[1:]], [leaves[1], *group[count + 1 :]])
                    taught = [x for x in leaves if x.requires_grad]
                    found = torch.autograd.grad(some.sum(), taught)
                out += some.detach()
                totals = [x for x, need in zip((grad, into_others), needs, strict=True) if need]
                for total, one in zip(totals, found, strict=True):
                    total += one
        if needed:
            ctx.save_for_backward(*grads)
        ctx.places = 2, 2 + count
        ctx.inputs = 2 + len(vectors)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * ctx.inputs
        for place, grad in zip(ctx.places, ctx.saved_tensors, strict=True):
            if ctx.needs_input_grad[place]:
                found[place] = grad * upstream[:, None, None]
        return tuple(found)


def pooled(x: Tensor, side: int) -> Tensor:
    """A map in at least float32, as means over squares; those that are cut off count too.

    Of whole windows the gradient is deterministic on a GPU, as that of adaptive pooling is not.
    """
    x = at_least_float32(x)
    return torch.nn.functional.avg_pool2d(x, side, ceil_mode=True) if side > 1 else x


def vectors_of(x: Tensor, over: str) -> Tensor:
    """The vectors of a map ``(N, C, H, W)`` that are related, ``(G, n, d)``."""
    if over == 'images':
        return x.flatten(1)[None]
    return x.flatten(2) if over == 'channels' else x.flatten(2).mT


def products(x: Tensor, y: Tensor) -> Tensor:
    """Products of all pairs of vectors, ``(..., m, d)`` and ``(..., n, d)``.

    Of vectors with themselves the backward pass has one product of matrices, not two. On a CPU
    long vectors are multiplied in parts: a single sum of millions is off by 1e-4 in float32.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> products(x, x)
        tensor([[1., 1.],
                [1., 2.]])
    """
    if x is not y:
        return x @ y.mT
    found: Tensor = _Gram.apply(x)
    return found


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        width = x.shape[:-1].numel()
        blocks = in_blocks(x, dim=-1, width=width, dtype=x.dtype, least=LEAST_SUM)
        found = [block @ block.mT for (block,) in blocks]
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad: Tensor = (upstream + upstream.mT) @ x
        return grad


def image_gram(x: Tensor, centre: bool = False) -> Tensor:
    """Products of all pairs of images of all processes, ``(B, B)``, each a vector ``(N, d)``.

    Args:
        x: The images of this process.
        centre: Whether they lose their mean first, for what depends on differences alone: those of
            large numbers would be lost.
    """
    x = gather_over_ranks(x)
    if centre:
        x = x - x.mean(0)
    return products(x, x)
