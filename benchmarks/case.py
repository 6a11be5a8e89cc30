"""What is measured: a loss against a plain reference that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Case', 'Pair', 'check_same', 'forward_backward', 'make_maps']

Call = Callable[[], Sequence[Tensor]]


class Pair(NamedTuple):
    """Two calls without arguments, on inputs that are made already.

    Each returns what it computed, in the same order: the value, then the gradients.
    """

    ours: Call
    reference: Call | None


class Case(NamedTuple):
    """One row of the benchmark.

    Args:
        name: As on the command line, such as ``fgd-masks``.
        what: What is compared, with its sizes, in one line.
        make: Makes the calls: ``make(device, small)``. ``small`` inputs are float64 and as
            small as makes sense (tests run them); the others are float32, of real sizes.
        goal_speed: How many times faster than the reference ours has to be; below 1, ours may
            be slower. ``None`` is no goal.
        goal_memory: What share of the reference's extra memory ours may take.
        bound: The reference is not the loss, but what limits its time: the results are not
            compared.
    """

    name: str
    what: str
    make: Callable[[str, bool], Pair]
    goal_speed: float | None = None
    goal_memory: float | None = None
    bound: bool = False


def forward_backward(function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Call:
    """Make a call that returns the value of a function and its gradients.

    Args:
        function: Returns a scalar.
        inputs: What the gradient is taken of; they require one.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> forward_backward(lambda: x.square().sum(), [x])()
        [tensor(5.), tensor([2., 4.])]
    """

    def call() -> list[Tensor]:
        value = function()
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    return call


def make_maps(
    shape: tuple[int, ...], device: str, small: bool, small_shape: tuple[int, ...] = (2, 3, 4, 6)
) -> tuple[Tensor, Tensor]:
    """Random maps of a student, which require a gradient, and of a teacher."""
    generator = torch.Generator().manual_seed(0)
    sizes = (2, *(small_shape if small else shape))
    maps = torch.randn(sizes, generator=generator, dtype=torch.float64 if small else torch.float32)
    student, teacher = maps.to(device)
    return student.clone().requires_grad_(), teacher.clone()


def check_same(name: str, pair: Pair) -> None:
    """Raise ``AssertionError`` unless ours and the reference give the same.

    Two tensors are the same if no entry differs by more than a share of the largest entry:
    1e-9 in float64, 1e-4 in float32.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> zero, sum_ = (forward_backward(lambda f=f: f * x.sum(), [x]) for f in (0, 1))
        >>> check_same('sum', Pair(zero, sum_))
        Traceback (most recent call last):
            ...
        AssertionError: sum: result 0 of ours differs from the reference by 2.0e+00, above 2.0e-04
    """
    if pair.reference is None:
        return
    ours, reference = pair.ours(), pair.reference()
    if len(ours) != len(reference):
        raise AssertionError(
            f'{name}: ours gives {len(ours)} results, the reference {len(reference)}'
        )
    for index, (x, y) in enumerate(zip(ours, reference, strict=True)):
        if x.shape != y.shape:
            raise AssertionError(
                f'{name}: result {index} of ours is {tuple(x.shape)}, '
                f'of the reference {tuple(y.shape)}'
            )
        largest = float(y.abs().max())
        difference = float((x - y).abs().max())
        tolerance = 1e-9 if y.dtype == torch.float64 else 1e-4
        if not difference <= tolerance * largest:  # nor NaN
            raise AssertionError(
                f'{name}: result {index} of ours differs from the reference by '
                f'{difference:.1e}, above {tolerance * largest:.1e}'
            )
