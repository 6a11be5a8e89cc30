"""Time and memory of calls, measured side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ['Spread', 'peak_memory', 'ratio', 'spread', 'time_interleaved']

Call = Callable[[], Any]


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def time_interleaved(
    calls: Mapping[str, Call],
    rounds: int = 5,
    warmup: int = 1,
    device: torch.device | str = 'cpu',
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Time calls in turns, so that what else a machine does falls on all of them alike.

    Each round runs every call once, and begins with another one than the round before. What
    runs on a GPU is timed by events of the GPU.

    Args:
        calls: What to time, by name.
        rounds: How often each is timed, at least 1.
        warmup: How many rounds come before, untimed.
        device: Where the work is done.
        progress: Is told after each round how many are done, and of how many.

    Returns:
        Seconds by name, one figure for each round.

    Raises:
        ValueError: If there is nothing to time or no round.

    Examples:
        >>> x = torch.ones(100, 100)
        >>> seconds = time_interleaved({'sum': x.sum, 'product': lambda: x @ x}, rounds=3)
        >>> {name: len(times) for name, times in seconds.items()}
        {'sum': 3, 'product': 3}
    """
    if not calls or rounds < 1 or warmup < 0:
        raise ValueError(
            'time_interleaved expects calls, rounds >= 1 and warmup >= 0, '
            f'got {len(calls)} calls, rounds={rounds}, warmup={warmup}'
        )
    timed = _timed_on_gpu if torch.device(device).type == 'cuda' else _timed_on_cpu
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            taken = timed(calls[name])
            if index >= warmup:
                seconds[name].append(taken)
        if progress is not None:
            progress(index + 1, warmup + rounds)
    return seconds


def _timed_on_cpu(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _timed_on_gpu(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of some figures.

    Examples:
        >>> spread([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.5, high=2.5)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method='inclusive')
    return Spread(median(values), low, high)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Median and quartiles of the quotients, round by round.

    Examples:
        >>> ratio([2.0, 8.0, 3.0], [1.0, 2.0, 1.0]).median
        3.0
    """
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def peak_memory(call: Call, device: torch.device | str = 'cpu') -> int:
    """Measure how many bytes a call holds at most, beyond those that were held before it.

    On a CPU every allocation of a tensor is counted, those within an operation as well; what
    libraries allocate for themselves is not.

    Args:
        call: What to measure. Run it once before, so that nothing is made for the first time.
        device: Where the work is done.

    Returns:
        Bytes.

    Examples:
        >>> x = torch.ones(1000)
        >>> peak_memory(lambda: x.exp().log())
        8000
    """
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _allocations() as found:
        call()
    held = peak = 0
    for size in found:
        held += size
        peak = max(peak, held)
    return peak


@contextmanager
def _allocations() -> Iterator[list[int]]:
    """What was allocated (positive) and freed (negative) on the CPU, in bytes, in order."""
    found: list[int] = []
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # it is loud
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    found += [event.nbytes() for event in events]
