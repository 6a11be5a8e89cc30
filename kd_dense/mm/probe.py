"""One small forward pass that tells what the taps of a model yield."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from kd_dense.taps import TapError, Taps

__all__ = ['Yield', 'forward', 'needs_features_only', 'probe']

FEATURES = ('backbone', 'neck')
SIZES = (64, 128, 256, 512)


class Yield(NamedTuple):
    """What a tap yields: how often its place runs, and the shape of each map."""

    calls: int
    shapes: list[tuple[int, ...]]


def needs_features_only(names: Iterable[str]) -> bool:
    """Whether all taps lie in backbone and neck."""
    return all(name.partition('.')[0].partition('[')[0] in FEATURES for name in names)


def forward(
    model: Any, inputs: Tensor, data_samples: Sequence[Any] | None, features_only: bool
) -> None:
    """Run as much of an OpenMMLab model as taps may need, without computing its loss."""
    if features_only and hasattr(model, 'extract_feat'):
        model.extract_feat(inputs)
    else:
        model(inputs, data_samples, mode='tensor')


@torch.no_grad()
def probe(model: nn.Module, names: Sequence[str]) -> dict[str, Yield]:
    """Find out what each tap yields, without touching the model.

    A copy without data runs on the ``meta`` device. Where an operator has no kernel there,
    a real copy runs on the CPU; where a layer refuses a small image, a larger one is tried.

    Args:
        model: An OpenMMLab model; its weights, mode and random state stay as they are.
        names: Its taps.

    Returns:
        For each tap, how often it runs and the shapes of its maps, ``(2, C, H, W)`` for
        most.

    Raises:
        TapError: If a tap does not exist, lies behind region proposals, or never runs.
        RuntimeError: If the model cannot run at all.
    """
    taps = Taps(names)
    for name in names:
        if name.startswith('roi_head'):
            raise TapError(
                f'tap {name!r} lies behind region proposals, where student and teacher look '
                'at different boxes: tap the backbone, the neck or the rpn_head instead'
            )
    with taps.on(model):  # unknown names are found before anything runs
        pass
    failure: Exception | None = None
    for device in ('meta', 'cpu'):
        replica = _replica(model, device)
        for size in SIZES:
            try:
                with torch.device(device), taps.on(replica):
                    forward(replica, *_batch(model, size, device), needs_features_only(names))
            except TapError:
                raise
            except Exception as error:  # any operator may refuse the device or the size
                failure = error
                continue
            finally:
                ran = {name: taps.calls(name) for name in names}
            silent = [name for name, calls in ran.items() if not calls]
            if silent:
                raise TapError(
                    f'tap {silent[0]!r} never runs in the forward pass of '
                    f'{type(model).__name__}; it does when another part is trained or tested '
                    'perhaps, which a teacher does not do'
                )
            found = {n: Yield(ran[n], [tuple(m.shape) for m in taps[n]]) for n in names}
            taps.clear()
            return found
    raise RuntimeError(
        f'{type(model).__name__} does not run on blank images of {SIZES} pixels: {failure}'
    ) from failure


def _replica(model: nn.Module, device: str) -> nn.Module:
    """A copy in eval mode; on ``meta`` no weight is copied."""
    memo: dict[int, Any] = {}
    if device == 'meta':
        for tensor in chain(model.parameters(), model.buffers()):
            blank = torch.empty_like(tensor, device='meta')
            memo[id(tensor)] = (
                nn.Parameter(blank, requires_grad=False)
                if isinstance(tensor, nn.Parameter)
                else blank
            )
    return copy.deepcopy(model, memo).to(device).eval()


def _batch(model: nn.Module, size: int, device: str) -> tuple[Tensor, list[BaseDataElement]]:
    """Two blank images, and samples that say their size."""
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    channels = 3 if mean is None else len(mean)
    shape = (size, size)
    sample = BaseDataElement(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
            flip=False,
        )
    )
    return torch.zeros(2, channels, size, size, device=device), [sample, copy.copy(sample)]
