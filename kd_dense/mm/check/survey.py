"""What there is to tap in a model, and which of it can be distilled from another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_dense.mm.batches.made_up import blank_batch
from kd_dense.mm.distil.fitting import check_classes
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.probe import FEATURES, QuickNorms, Yield, forward, replicate
from kd_dense.taps import TapError, Taps

__all__ = ['Pair', 'Place', 'compare', 'survey']


class Place(NamedTuple):
    """A tap, the class of the module that it names, and what it yields."""

    tap: str
    kind: str
    found: Yield


class Pair(NamedTuple):
    """A tap of two models, None where one does not have it, and whether it can be distilled.

    ``verdict`` is ``'fits'``, ``'adapter'`` where channels differ, ``'adapter, resized'`` where
    sizes do, or ``'no: '`` and the reason.
    """

    tap: str
    student: Place | None
    teacher: Place | None
    verdict: str


@torch.no_grad()
def survey(model: nn.Module, size: tuple[int, int]) -> list[Place]:
    """Find what a tap can name in a model.

    Args:
        model: An OpenMMLab model; weights, mode and random state stay as they are.
        size: Height and width of the images, in pixels.

    Returns:
        All places that yield maps ``(N, C, H, W)`` and no other tensors, in the order of
        ``model.named_modules()``; of modules in a list, ``'neck.fpn_convs.*'`` stands for all.
        If the model runs as a whole only with ground truth, those of backbone and neck.

    Raises:
        RuntimeError: If the model does not run at this size.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    kinds = {name: type(module).__name__ for name, module in modules.items()}
    kinds |= {f'{name}.*': kinds[f'{name}.0'] for name in lists if f'{name}.0' in modules}
    taps = Taps(kinds)
    _run(model, taps, size)
    order = {name: place for place, name in enumerate(modules)}
    found = []
    for tap in sorted(kinds, key=lambda tap: order[tap.removesuffix('.*')]):
        try:
            maps: Sequence[Tensor] = taps[tap]
        except TapError:  # never ran, or is overwritten by a later layer
            continue
        if all(x.dim() == 4 for x in maps):
            place = Yield(taps.calls(tap), [tuple(x.shape) for x in maps])
            found.append(Place(tap, kinds[tap], place))
    return found


def _run(model: nn.Module, taps: Taps, size: tuple[int, int]) -> None:
    """Record in as much of the model as runs, on a device without data if possible."""
    problems = []
    for names in (taps.names, FEATURES):  # all, or as far as a model without head
        for device in ('meta', 'cpu'):
            replica = replicate(model, device)
            replica.eval()
            try:
                with torch.device(device), QuickNorms(), taps.on(replica):
                    forward(replica, *blank_batch(model, size, device), names)
            except Exception as error:  # any layer may refuse
                problems.append(f'{type(error).__name__}: {error}')
            else:
                return
    raise RuntimeError(
        f'{type(model).__name__} does not run on blank images of {size[0]}x{size[1]} pixels: '
        f'{problems[-1]}'
    )


def compare(student: nn.Module, teacher: nn.Module, size: tuple[int, int]) -> list[Pair]:
    """Put the taps of two models side by side, as a loss that compares positions sees them.

    Args:
        student: An OpenMMLab model.
        teacher: Another one.
        size: Height and width of the images, in pixels.

    Returns:
        A pair for each tap of the student, then those that the teacher alone has.

    Raises:
        RuntimeError: If a model does not run at this size.
    """
    ours = {place.tap: place for place in survey(student, size)}
    theirs = {place.tap: place for place in survey(teacher, size)}
    taps = [*ours, *(tap for tap in theirs if tap not in ours)]
    return [
        Pair(tap, ours.get(tap), theirs.get(tap), _verdict(tap, student, ours, teacher, theirs))
        for tap in taps
    ]


def _verdict(
    tap: str,
    student: nn.Module,
    ours: Mapping[str, Place],
    teacher: nn.Module,
    theirs: Mapping[str, Place],
) -> str:
    if tap.startswith('roi_head'):
        return 'no: behind region proposals, which differ; a box head takes shared_rois=True'
    if tap not in theirs:
        return 'no: not in the teacher'
    if tap not in ours:
        return 'no: not in the student'
    a, b = ours[tap].found, theirs[tap].found
    term = Term('pair', tap=tap, loss=dict(type='CWDLoss'))
    try:
        term.build_losses(a, b)
        check_classes(term, student, a, teacher, b)
        term.fit(a, b)
    except ValueError as error:
        return 'no: ' + str(error).removeprefix("term 'pair': ")
    if all(isinstance(x, nn.Identity) for x in term.adapters):
        return 'fits'
    resized = any(x[2:] != y[2:] for x, y in zip(a.shapes, b.shapes, strict=True))
    return 'adapter, resized' if resized else 'adapter'
