"""The least that a teacher costs: its layers up to the last tap, and the largest of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kd_dense.mm.cost.nested import bytes_of
from kd_dense.mm.cost.steps import Batch
from kd_dense.mm.models.probe import forward
from kd_dense.taps import Taps

__all__ = ['largest_layer', 'minimal_forward']


def minimal_forward(model: Any, calls: Mapping[str, int], batch: Batch) -> Taps:
    """Run a teacher up to its last tap, and no further.

    Args:
        model: The teacher.
        calls: Its taps, and how often each of them runs.
        batch: Its batch.

    Returns:
        What was recorded.
    """
    with torch.no_grad(), Taps(calls).on(model, stop_after=calls) as taps:
        forward(model, *batch, names=calls)
    return taps


def largest_layer(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of input and output of the largest module without children that runs.

    Args:
        model: The model.
        run: Runs it.
    """
    sizes = [0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.append(bytes_of([*inputs, output]))

    hooks = [m.register_forward_hook(look) for m in model.modules() if not any(m.children())]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)
