"""Run a function in two processes that train together on the CPU."""

from __future__ import annotations

import io
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

# What takes seconds to import: once for all processes, in the one that they are forked from.
PRELOAD = ['kd_dense.mm', 'mmdet.models', 'mmseg.models']


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


def in_two_processes(function: Callable[..., Any], *args: Any, timeout: float = 300) -> list[Any]:
    """Call ``function(rank, *args)`` in two processes that gloo connects.

    Returns:
        What it returned for rank 0 and for rank 1.

    Raises:
        AssertionError: If it failed in one of them; the message is its traceback.
    """
    context = mp.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    results = context.Queue()
    processes = [
        context.Process(target=_work, args=(rank, port, results, function, args))
        for port in [free_port()]
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        found = {}
        while len(found) < 2:
            rank, error, value = results.get(timeout=timeout)
            assert error is None, f'process {rank}: {error}'
            found[rank] = torch.load(io.BytesIO(value), weights_only=False)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    return [found[0], found[1]]


def _work(rank: int, port: int, results: Any, function: Callable[..., Any], args: Any) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
        dist.init_process_group(
            'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
        )
        value = io.BytesIO()  # tensors in a queue would be gone with this process
        torch.save(function(rank, *args), value)
        results.put((rank, None, value.getvalue()))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), b''))
