"""What the GPU is, and whether it is waited for."""

from __future__ import annotations

import platform
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

WAITED = 'called a synchronizing CUDA operation'


def describe() -> str:
    """The card, and the versions of what computes on it."""
    found = [f'Python {platform.python_version()}', f'torch {torch.__version__}']
    found.append(f'numpy {np.__version__}')
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        name = f'{torch.cuda.device_count()} x {card.name}, {card.total_memory / 2**30:.0f} GiB'
        found = [name, *found, f'CUDA {torch.version.cuda}']
        found.append(f'cuDNN {torch.backends.cudnn.version()}')
    return ', '.join(found)


@contextmanager
def waiting(mode: str, device: str) -> Iterator[None]:
    """Let what makes the host wait for the GPU be an ``'error'``, or ``'warn'``."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        if device == 'cuda':
            torch.cuda.set_sync_debug_mode('default')


def waits(call: Callable[[], Any], device: str) -> Counter[str]:
    """The lines from which a call waits for the GPU, and how often each does."""
    with waiting('warn', device), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        call()
    lines = [f'{one.filename}:{one.lineno}' for one in found if WAITED in str(one.message)]
    return Counter(lines)
