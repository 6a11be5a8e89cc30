"""The lengths of vectors, and vectors of length 1, in few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_dense.functional.divergence import for_cache

__all__ = ['squared_norm', 'unit']


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 0.0) -> Tensor:
    r"""Vectors over their 2-norm, $x / \sqrt{\lVert x \rVert^2 + \epsilon}$.

    Those that are 0 stay 0, and with $\epsilon = 0$ have no gradient of another size.

    Args:
        x: Of any shape, at least float32.
        dim: Along which a vector lies.
        eps: $\epsilon$.

    Examples:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    found: Tensor = _Unit.apply(x, dim, eps)
    return found


class _Unit(torch.autograd.Function):
    """What [`unit`][] says, and its gradient, for which the result is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
        if for_cache(x):  # where vector_norm loses digits over many numbers
            norm = x.square().sum(dim, keepdim=True).sqrt_()
        else:
            norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        length = (norm.square() + eps).sqrt() if eps > 0 else norm.masked_fill(norm == 0, 1)
        found = x / length
        ctx.save_for_backward(found, length)
        ctx.dim = dim
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        found, length = ctx.saved_tensors
        along = (upstream * found).sum(ctx.dim, keepdim=True)
        return torch.addcmul(upstream, found, along, value=-1).div_(length), None, None


def squared_norm(x: Tensor) -> Tensor:
    """The sum of squares over the channels of maps.

    Args:
        x: ``(N, C, ...)``, at least float32.

    Returns:
        ``(N, ...)``.

    Examples:
        >>> squared_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([25.,  1.])
    """
    found: Tensor = _SquaredNorm.apply(x)
    return found


class _SquaredNorm(torch.autograd.Function):
    """What [`squared_norm`][] says, and its gradient, without another map of the squares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if for_cache(x):
            return x.square().sum(1)
        norm: Tensor = torch.linalg.vector_norm(x, dim=1)
        return norm.square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad: Tensor = x * (2 * upstream)[:, None]
        return grad
