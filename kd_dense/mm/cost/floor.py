"""The least that a teacher costs: its layers up to the last tap, and the largest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_dense.mm.batches.rois import read_rois
from kd_dense.mm.cost.nested import bytes_of
from kd_dense.mm.cost.steps import Batch
from kd_dense.mm.distil.distilled import own_class
from kd_dense.mm.distil.shared_rois import by_box_heads
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.box_heads import BoxHead, run_box_head
from kd_dense.mm.models.probe import forward
from kd_dense.taps import Taps

__all__ = ['Asked', 'asked_of_box_heads', 'largest_layer', 'minimal_forward', 'on_rois']


class Asked(NamedTuple):
    """A box head of a teacher, its taps, and the RoIs that it looks at."""

    head: BoxHead
    taps: list[str]
    boxes: Tensor


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


def on_rois(model: Any, asked: Sequence[Asked], features: Taps) -> None:
    """Run box heads of a teacher on given RoIs, each to its last tap.

    Args:
        model: The teacher.
        asked: What is asked of each box head.
        features: What [`minimal_forward`][] has recorded.
    """
    for head, taps, boxes in asked:
        with torch.no_grad(), Taps(taps).on(model, stop_after={}):
            roi_head = model.get_submodule(head.roi_head)
            run_box_head(roi_head, features[head.features(model)], boxes, head.stage)


def asked_of_box_heads(model: Any, terms: Iterable[Term], batch: Batch) -> list[Asked]:
    """Find the RoIs on which a distilled student asks its teacher, in one step.

    Args:
        model: The student.
        terms: Those that are on.
        batch: Its batch.
    """
    shared = [term.rois for term in terms if term.rois is not None]
    if not shared:
        return []
    with torch.no_grad(), Taps(one.targets for one in shared).on(model) as found:
        own_class(type(model)).loss(model, *batch)
    return [
        Asked(head, taps, read_rois(found, targets).boxes)
        for (targets, head), taps in by_box_heads(shared).items()
    ]


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
