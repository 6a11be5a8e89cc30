"""How the weight of a term changes over training."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ['Schedule']


class Schedule:
    """A factor on a term's weight: start, warm-up, plateau, decay, stop.

    The factor is 0 before ``start``, rises linearly from 0 to 1 over ``warmup``, stays at 1, and
    falls to 0 at ``stop`` if ``decay`` is given, or drops to 0 there if not. While it is 0 for
    every term, the teacher does not run.

    Args:
        warmup: Length of the linear warm-up, in iterations.
        decay: ``'linear'`` or ``'cosine'``, from the end of the warm-up to ``stop``.
        stop: From here on the factor is 0. Default: the end of training.
        start: Up to here the factor is 0.
        by_epoch: Whether ``start``, ``warmup`` and ``stop`` count epochs.
        by_share: Whether they are shares of the training, from 0 to 1, however long that is.

    Raises:
        ValueError: If an argument is negative or unknown, ``stop`` comes before the end of the
            warm-up, a share leads beyond the training, or epochs and shares are asked for
            together.

    Examples:
        >>> schedule = Schedule(warmup=2, decay='linear', stop=6)
        >>> [schedule.factor(now, end=10) for now in range(8)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        warmup: float = 0,
        decay: Literal['linear', 'cosine'] | None = None,
        stop: float | None = None,
        start: float = 0,
        by_epoch: bool = False,
        by_share: bool = False,
    ) -> None:
        if decay not in (None, 'linear', 'cosine'):
            raise ValueError(f"expected decay 'linear', 'cosine' or None, got {decay!r}")
        if not min(warmup, start) >= 0:
            raise ValueError(f'expected warmup and start >= 0, got {warmup} and {start}')
        if stop is not None and not stop >= start + warmup:
            raise ValueError(
                f'expected stop >= start + warmup, got stop={stop}, start={start} and '
                f'warmup={warmup}'
            )
        if by_epoch and by_share:
            raise ValueError('expected by_epoch or by_share, got both')
        if by_share and not max(start + warmup, stop or 0) <= 1:
            raise ValueError(
                f'expected shares of the training that add up to 1 at most, got start={start}, '
                f'warmup={warmup} and stop={stop}'
            )
        self.warmup = warmup
        self.decay = decay
        self.stop = stop
        self.start = start
        self.by_epoch = by_epoch
        self.by_share = by_share

    @property
    def constant(self) -> bool:
        """Whether the factor is 1 throughout."""
        return not self.warmup and not self.start and self.decay is None and self.stop is None

    def factor(self, now: float, end: float) -> float:
        """The factor at a moment of training.

        Args:
            now: Iterations (or epochs) done so far.
            end: Iterations (or epochs) in all.

        Returns:
            A number from 0 to 1.
        """
        if self.by_share:
            now, end = now / end, 1.0
        stop = end if self.stop is None else self.stop
        if now < self.start:
            return 0.0
        if now < self.start + self.warmup:
            return (now - self.start) / self.warmup
        if self.stop is not None and now >= stop:
            return 0.0
        if self.decay is None:
            return 1.0
        length = max(stop - self.start - self.warmup, 1e-9)
        left = min(max((stop - now) / length, 0.0), 1.0)
        return left if self.decay == 'linear' else 0.5 - 0.5 * math.cos(math.pi * left)
