"""What a step costs on many GPUs: how much is exchanged, and a model of the time that it takes.

    python -m benchmarks.scale_out              what each loss exchanges in a step
    python -m benchmarks.scale_out --simulate   the time of a step on 8, 64 and 512 GPUs
    torchrun --nproc_per_node 4 -m benchmarks.scale_out --check   a step of 4 processes, counted

The model is in docs/distributed.md. Its constants are assumptions, and arguments.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log2
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, distributed, nn

from benchmarks import launches
from benchmarks.counting import size_of
from kd_dense.losses import KDLoss
from kd_dense.losses.queries import matching

__all__ = ['Cluster', 'Exchanged', 'Step', 'exchanged', 'main', 'simulate']


class Exchanged(NamedTuple):
    """Collectives of a loss in a step, and their bytes, in the forward and backward pass."""

    forward: int
    backward: int
    bytes: int


@contextmanager
def listening() -> Iterator[list[int]]:
    """As in a group of processes, of which there is one; collects the bytes of collectives."""
    found: list[int] = []

    def all_reduce(x: Tensor, *args: Any, **kwargs: Any) -> None:
        found.append(size_of(x))

    def all_gather(parts: list[Tensor], x: Tensor) -> None:
        found.append(size_of(x))

    with (
        mock.patch.object(distributed, 'is_initialized', return_value=True),
        mock.patch.object(distributed, 'get_world_size', return_value=1),
        mock.patch.object(distributed, 'get_rank', return_value=0),
        mock.patch.object(distributed, 'all_reduce', all_reduce),
        mock.patch.object(distributed, 'all_gather', all_gather),
        mock.patch.object(matching, 'solve', launches.in_order),
    ):
        yield found


def exchanged(name: str) -> Exchanged:
    """Count what a loss exchanges.

    Args:
        name: Of a case of ``benchmarks.launches``.
    """
    case = next(case for case in launches.CASES if case.name == name)
    with listening() as found:
        call = case.make('meta', False).ours
        backward = torch.autograd.grad
        before: list[int] = []

        def grad(*args: Any, **kwargs: Any) -> Any:
            before.append(len(found))
            return backward(*args, **kwargs)

        with mock.patch.object(torch.autograd, 'grad', grad):
            call()
    forward = before[-1] if before else len(found)
    return Exchanged(forward, len(found) - forward, sum(found))


class Cluster(NamedTuple):
    """GPUs, as the model has them: assumptions.

    Args:
        inside: Bytes a second of each GPU within a machine.
        between: Bytes a second of each GPU between machines.
        latency: Seconds of a message within a machine.
        far: Seconds of a message between machines.
        jitter: How much the time of a part of a step differs between GPUs, as a share of it.
        machine: GPUs of a machine.
    """

    inside: float = 150e9
    between: float = 25e9
    latency: float = 8e-6
    far: float = 20e-6
    jitter: float = 0.03
    machine: int = 8

    def all_reduce(self, gpus: int, size: float) -> float:
        """Seconds of an all-reduce, as a ring within machines and one between them."""
        inner, outer = min(gpus, self.machine), max(gpus // self.machine, 1)
        ring = 2 * (inner - 1) / inner * size / self.inside
        ring += 2 * (outer - 1) / outer * size / inner / self.between
        waits = 2 * self.latency * log2(inner) + 2 * self.far * log2(outer)
        return ring + waits


class Step(NamedTuple):
    """A step on one GPU: seconds of its parts, bytes of gradients, and our all-reduces."""

    teacher: float = 0.020
    forward: float = 0.030
    backward: float = 0.050
    loading: float = 0.060  # of a batch, by all workers of a GPU; or reading it from a cache
    gradients: float = 151e6
    small: int = 0  # all-reduces between forward and backward pass
    small_bytes: float = 64.0
    early: float = 0.0  # how long before they are needed these are sent


def simulate(
    step: Step, cluster: Cluster, gpus: int, steps: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Draw steps, and say how long they take in the mean.

    Each GPU loads the next batch meanwhile. It runs the teacher and the forward pass, waits until
    all have sent what small all-reduces need, if there are any, and runs the backward pass, over
    the last two thirds of which gradients are exchanged; then all wait for all.

    Returns:
        Seconds: of the whole ``step``; of that, ``waiting`` for others and small all-reduces, and
        ``exchange`` of gradients that nothing hides.
    """
    draw = np.random.default_rng(seed)

    def parts(seconds: float) -> Any:
        sigma = cluster.jitter
        return seconds * draw.lognormal(-(sigma**2) / 2, sigma, (steps, gpus))

    first, second = parts(step.teacher + step.forward), parts(step.backward)
    loading = parts(step.loading).max(1)
    gradients = cluster.all_reduce(gpus, step.gradients)
    exposed = max(gradients - step.backward * 2 / 3, gradients / 25)  # the last bucket of 25
    small = step.small * cluster.all_reduce(gpus, step.small_bytes)
    halfway = first
    if step.small:
        reduced = (first - step.early).max(1, keepdims=True) + small
        halfway = np.maximum(first, reduced)
    compute = (halfway + second).max(1)
    whole = np.maximum(compute + exposed, loading)
    return dict(
        step=float(whole.mean()),
        waiting=float((compute - (first + second).mean(1)).mean()),
        exchange=exposed,
    )


def check(processes: int) -> tuple[int, int, int]:
    """Train a small model with DDP and KD for a step: gradient messages, their bytes, others."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Conv2d(3, 19, 3))
    loss = KDLoss(temperature=2.0)
    sizes: list[int] = []
    plain = distributed.all_reduce

    def all_reduce(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(size_of(x))
        return plain(x, *args, **kwargs)

    buckets: list[int] = []

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP looks at annotations
        buckets.append(size_of(bucket.buffer()))
        work = plain(bucket.buffer().div_(processes), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)
    maps = model(torch.randn(2, 3, 10, 10))
    with mock.patch.object(distributed, 'all_reduce', all_reduce):
        labels = torch.zeros(2, 8, 8, dtype=torch.long)
        loss(maps, torch.randn_like(maps), segmentation=labels).backward()
    return len(buckets), sum(buckets), len(sizes)


def report_losses(names: Sequence[str]) -> None:
    table = Table('case', 'forward', 'backward', 'bytes', title='All-reduces of a loss in a step')
    for name in names:
        found = exchanged(name)
        table.add_row(name, *(f'{n:,}' for n in found))
    Console(width=100).print(table)


def report_simulated() -> None:
    table = Table('GPUs', 'small all-reduces', 'sent before needed, ms')
    for title in ('step, ms', 'waiting, ms', 'exchange, ms'):
        table.add_column(title)
    for gpus in (8, 64, 512):
        for small, early in ((0, 0.0), (1, 0.0), (1, 0.0002), (1, 0.001), (1, 0.03), (5, 0.0)):
            found = simulate(Step(small=small, early=early), Cluster(), gpus)
            cells = (f'{1000 * value:.2f}' for value in (early, *found.values()))
            table.add_row(str(gpus), str(small), *cells)
    Console(width=100).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.scale_out',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--simulate', action='store_true', help='the time of a step')
    parser.add_argument('--check', action='store_true', help='a step of several processes')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='losses whose name begins so')
    args = parser.parse_args(argv)
    if args.simulate:
        report_simulated()
    elif args.check:
        if 'RANK' not in os.environ:
            parser.error(
                'start it with torchrun --nproc_per_node 2 -m benchmarks.scale_out --check'
            )
        distributed.init_process_group('gloo')
        found = check(distributed.get_world_size())
        if distributed.get_rank() == 0:
            print('{} messages of gradients, {} bytes; {} others'.format(*found))
        distributed.destroy_process_group()
    else:
        names = [case.name for case in launches.CASES]
        report_losses([name for name in names if name.startswith(tuple(args.only or ['']))])


if __name__ == '__main__':
    main()
