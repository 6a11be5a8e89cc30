"""Weights that set themselves: how strongly a term pulls, as a share of what the task does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable

from kd_dense.functional import at_least_float32, mean_over_ranks

__all__ = ['Share', 'ShareMeter', 'ends_of_chains']

# A weight follows the gradients of about so many measurements.
MEMORY = 50
# And allows at most so many times what the last one would.
LEEWAY = 2.0
# What a term is worth in its first step, which only measures.
FIRST_VALUE = 1e-3


class Share(nn.Module):
    r"""The weight of a loss that pulls ``share`` times as strongly as the losses of the task.

    Pull is the norm of a gradient by the student's maps of a tap, all maps that the loss uses
    together. With $g$ of the task and $k$ of the loss as it is, the weight is

    $$
    w = \text{share} \cdot \exp\Bigl(\operatorname{mean}_{\text{steps}}
        \log \frac{\lVert g \rVert}{\lVert k \rVert}\Bigr)
    $$

    a mean over all steps so far and, later, over the last 50 or so; but at most twice what the
    last step alone would make of it, since a loss whose gradient grows fast would outrun its mean.
    The weight of a step is thus known before its backward pass, which measures for the steps that
    follow; in the first step it makes the loss worth next to nothing. What is measured without a
    gradient of the one or the other, or with one that is not finite, is left out.

    All that it knows are buffers, so that a resumed training goes on as it was.

    Args:
        share: $\lVert w k \rVert / \lVert g \rVert$ that is aimed at, ``> 0``.

    Raises:
        ValueError: If ``share`` is not a positive number.

    Examples:
        >>> share = Share(0.5)
        >>> share.update(torch.tensor([4.0, 1.0]))  # the squares of both norms
        >>> share.weight(torch.tensor(7.0))  # whatever the loss is
        tensor(1.)
    """

    log_ratio: Tensor
    newest: Tensor
    steps: Tensor
    first: Tensor
    pull: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        real = isinstance(share, Real) and not isinstance(share, bool)
        if not (real and share > 0 and math.isfinite(share)):
            raise ValueError(f'expected a share > 0, got share={share!r}')
        self.share = share
        self.register_buffer('log_ratio', torch.zeros(()))
        self.register_buffer('newest', torch.zeros(()))
        self.register_buffer('steps', torch.zeros(()))
        self.register_buffer('first', torch.zeros(()))
        self.register_buffer('pull', torch.zeros(()))
        self.ends: list[bool] | None = None  # which maps are measured, once it is known
        self._begun = False  # whether `first` is known: so that nothing waits to be told

    @torch.no_grad()
    def weight(self, loss: Tensor) -> Tensor:
        """The weight in this step.

        Args:
            loss: The loss that is to be weighted.
        """
        if not self._begun:
            self._begun = True
            size = mean_over_ranks(at_least_float32(loss.detach().abs()))
            self.first.copy_(FIRST_VALUE / size.clamp(min=FIRST_VALUE))
        log_ratio = torch.minimum(self.log_ratio, self.newest + math.log(LEEWAY))
        return torch.where(self.steps > 0, self.share * log_ratio.exp(), self.first)

    @torch.no_grad()
    def update(self, squares: Tensor, weight: float | Tensor = 1.0) -> None:
        """Take in what a step has measured.

        Args:
            squares: Squared norms of the gradients of the task and of the loss without weight,
                ``(2,)``, of all processes together.
            weight: What the loss had in that step: ``pull`` is what share came of it.
        """
        task, loss = squares
        usable = squares.isfinite().all() & (task > 0) & (loss > 0)
        self.steps += usable
        rate = (1 / self.steps.clamp(min=1)).clamp(min=1 / MEMORY)
        newest = (task / loss).log() / 2
        self.newest.copy_(torch.where(usable, newest, self.newest))
        self.log_ratio += torch.where(usable, rate * (newest - self.log_ratio), 0)
        self.pull.copy_(torch.where(usable, weight * (loss / task).sqrt(), self.pull))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if f'{prefix}log_ratio' in state_dict:  # of a checkpoint from before there was `newest`
            state_dict.setdefault(f'{prefix}newest', state_dict[f'{prefix}log_ratio'])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._begun = bool(self.first > 0)


class ShareMeter:
    """Measures, in the one backward pass of a step, how strongly losses and the task pull.

    Examples:
        >>> x = torch.ones(3, requires_grad=True)
        >>> y = 2 * x
        >>> share, meter = Share(1.0), ShareMeter()
        >>> loss = meter.alias(share, y).sum()
        >>> loss = meter.weigh(share, loss) * loss
        >>> (y.square().sum() + loss).backward()
        >>> share.log_ratio.exp()  # gradients of 4 and of 1 by each number
        tensor(4.)
    """

    def __init__(self) -> None:
        self._maps: dict[int, _Map] = {}
        self._weights: dict[int, tuple[Share, Tensor]] = {}
        self._queued = False

    def __deepcopy__(self, memo: object) -> ShareMeter:
        return ShareMeter()

    def start(self) -> None:
        """Forget a step that had no backward pass."""
        self._maps, self._weights, self._queued = {}, {}, False

    def alias(self, share: Share, x: Tensor) -> Tensor:
        """A map of the student for one loss alone, so that its gradient is told from others.

        Args:
            share: Of the loss.
            x: The map, as the model goes on with it; it has to live on while losses get theirs.
        """
        if not x.requires_grad:
            return x
        if id(x) not in self._maps:
            self._maps[id(x)] = _Map(x, self._arrived)
        alias = x.view_as(x)
        alias.register_hook(partial(self._maps[id(x)].one, id(share)))
        return alias

    def aliases(self, share: Share, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of a tap for one loss alone; of maps computed from each other, the last.

        Args:
            share: Of the loss.
            maps: As of [`alias`][].
        """
        if share.ends is None:
            share.ends = ends_of_chains(maps)
        return [self.alias(share, x) if e else x for x, e in zip(maps, share.ends, strict=True)]

    def weigh(self, share: Share, loss: Tensor, factor: float = 1.0) -> Tensor:
        """The weight of a loss in this step, which is to be measured.

        Args:
            share: Of the loss.
            loss: The loss, computed from what [`alias`][] returned.
            factor: Of a schedule: it comes on top of the share.
        """
        weight = factor * share.weight(loss)
        self._weights[id(share)] = share, weight
        return weight

    def _arrived(self) -> None:
        """A gradient of a loss has come: at the end of this backward pass, all are added up."""
        if not self._queued:
            self._queued = True
            Variable._execution_engine.queue_callback(self._finish)

    @torch.no_grad()
    def _finish(self) -> None:
        maps, weights = [*self._maps.values()], self._weights
        self.start()
        squares = [
            torch.stack([*_total(weight, (m.squares.get(key) for m in maps)), weight.square()])
            for key, (_, weight) in weights.items()
        ]
        if not squares:
            return
        task, loss, square_of_weight = torch.stack(squares).unbind(1)
        measured = torch.stack([task, loss / square_of_weight], 1)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(measured)
        for (share, weight), one in zip(weights.values(), measured, strict=True):
            share.update(one, weight)


def _total(like: Tensor, pairs: Iterable[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor]:
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return like.new_zeros(()), like.new_zeros(())
    task, loss = (torch.stack(one).sum() for one in zip(*known, strict=True))
    return task, loss


def ends_of_chains(maps: Sequence[Tensor]) -> list[bool]:
    """Which maps none of the others is computed from.

    What a loss sends back from a later map arrives at those in front of it together with the
    gradient of the task, and would be taken for it: the more the loss pulled, the more it would
    be told to pull.

    Args:
        maps: Of a model, as the stages of a backbone or the levels of a pyramid.

    Examples:
        >>> x = torch.ones(2, requires_grad=True)
        >>> first = x.exp()
        >>> ends_of_chains([first, first.exp(), x.sin()])
        [False, True, True]
    """
    nodes = [x.grad_fn for x in maps]
    behind = [_in_front_of(node) for node in nodes]
    return [
        not any(node in others for k, others in enumerate(behind) if k != i)
        for i, node in enumerate(nodes)
    ]


def _in_front_of(node: Any) -> set[Any]:
    """All of the graph that a node was computed from, itself left out."""
    found: set[Any] = set()
    waiting = [] if node is None else [node]
    while waiting:
        new = {one for one, _ in waiting.pop().next_functions if one is not None} - found
        found |= new
        waiting += new
    return found


class _Map:
    """The gradients by a map of the student, which is not held: its hooks hold this."""

    def __init__(self, x: Tensor, arrived: Callable[[], None]) -> None:
        self.arrived = arrived
        self.losses: dict[int, Tensor] = {}
        self.squares: dict[int, tuple[Tensor, Tensor]] = {}
        x.register_hook(self._all)

    def one(self, key: int, grad: Tensor) -> None:
        """The gradient of one loss has come."""
        self.losses[key] = grad.detach()
        self.arrived()

    def _all(self, grad: Tensor) -> None:
        """The gradient of everything is there: what is not the losses' is the task's."""
        if not self.losses:
            return
        task = grad.detach()
        for loss in self.losses.values():
            task = task - loss
        pull = _square(task)
        self.squares = {key: (pull, _square(loss)) for key, loss in self.losses.items()}
        self.losses = {}


def _square(grad: Tensor) -> Tensor:
    return at_least_float32(grad).square().sum()
