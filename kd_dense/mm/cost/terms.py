"""Terms alone, on the maps that a step gave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kd_dense.mm.configs import RequestError
from kd_dense.mm.cost.nested import cut
from kd_dense.mm.cost.steps import Batch, Trained, differentiate_critics
from kd_dense.taps import tensors_in

__all__ = ['crossing_alone', 'recorded', 'term_alone']


def recorded(trained: Trained, batch: Batch) -> dict[str, tuple[Any, ...]]:
    """Take a step.

    Args:
        trained: A distilled student.
        batch: Its batch.

    Returns:
        What each term was called with, of those that are not switched off.

    Raises:
        RequestError: If the loss is not finite.
    """
    found: dict[str, tuple[Any, ...]] = {}
    hooks = [
        term.register_forward_pre_hook(
            lambda _, arguments, name=name: found.update({name: cut(arguments)})
        )
        for name, term in trained.model.kd.items()
    ]
    try:
        total = trained.step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not total.isfinite():
        raise RequestError('the loss of a step is not finite; what would be timed has no meaning')
    return found


def term_alone(trained: Trained, name: str, arguments: Sequence[Any]) -> Callable[[], None]:
    """A term on recorded maps, forward and backward, with the backward pass of its critic.

    Args:
        trained: A distilled student.
        name: Of the term.
        arguments: What [`recorded`][] has found for it.

    Returns:
        A call that computes it.
    """
    term = trained.model.kd[name]
    leaves = [x for x in tensors_in(arguments) if x.requires_grad]
    leaves += [p for p in term.parameters() if p.requires_grad]

    def run() -> None:
        with trained.context():
            losses = term(*arguments)
        torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True)
        differentiate_critics([term])

    return run


def crossing_alone(trained: Trained, name: str, arguments: Sequence[Any]) -> Callable[[], None]:
    """The student's features through the rest of the teacher's head, forward and backward.

    Args:
        trained: A distilled student.
        name: Of a [`kd_dense.mm.distil.crossing.CrossTerm`][].
        arguments: What [`recorded`][] has found for it.

    Returns:
        A call that does that.
    """
    term = trained.model.kd[name]
    student, teacher = arguments[:2]

    def run() -> None:
        with trained.context():
            crossed, _ = term.compared(student, teacher)
        torch.autograd.grad(sum(x.sum() for x in crossed), student, allow_unused=True)

    return run
