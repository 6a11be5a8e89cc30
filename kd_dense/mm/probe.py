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
SIZES = tuple((size, size) for size in (64, 128, 256, 512))


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


def probe(
    student: nn.Module,
    student_taps: Sequence[str],
    teacher: nn.Module,
    teacher_taps: Sequence[str],
) -> tuple[dict[str, Yield], dict[str, Yield]]:
    """Find out what each tap yields in both models, on images of one size.

    Args:
        student: An OpenMMLab model; weights, mode and random state stay as they are.
        student_taps: Its taps.
        teacher: Another one.
        teacher_taps: Its taps.

    Returns:
        For the student and for the teacher, what each tap yields.

    Raises:
        TapError: If a tap does not exist, lies behind region proposals, or never runs.
        RuntimeError: If the models run at none of the sizes that were tried.
    """
    both = (('student', student, student_taps), ('teacher', teacher, teacher_taps))
    for whose, model, names in both:
        try:
            _check_names(model, names)
        except TapError as error:
            raise TapError(f'{whose}: {error}') from None
    failures = {}
    for size in dict.fromkeys([*SIZES, *_own_sizes(student), *_own_sizes(teacher)]):
        try:
            found = [_yields(model, names, size) for _, model, names in both]
        except TapError:
            raise
        except Exception as error:  # any layer may refuse a size
            failures[size] = f'{size[0]}x{size[1]} pixels: {error}'
        else:
            return found[0], found[1]
    raise RuntimeError(
        'student and teacher cannot be tried out on blank images of one size:\n'
        + '\n'.join(failures.values())
    )


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        if name.startswith('roi_head'):
            raise TapError(
                f'tap {name!r} lies behind region proposals, where student and teacher look '
                'at different boxes: tap the backbone, the neck or the rpn_head instead'
            )
    with Taps(names).on(model):
        pass


@torch.no_grad()
def _yields(model: nn.Module, names: Sequence[str], size: tuple[int, int]) -> dict[str, Yield]:
    """What the taps yield at a size.

    A copy without data runs on the ``meta`` device; where an operator has no kernel there, a
    real copy on the CPU.
    """
    taps = Taps(names)
    for device in ('meta', 'cpu'):
        replica = _replica(model, device)
        try:
            with torch.device(device), taps.on(replica):
                forward(replica, *_batch(model, size, device), needs_features_only(names))
        except Exception:  # meta lacks many kernels; what fails on the CPU too is raised
            if device == 'cpu':
                raise
        else:
            break
    for name in names:
        if not taps.calls(name):
            raise TapError(
                f'tap {name!r} never runs in the forward pass of {type(model).__name__}; perhaps '
                'it does in other parts of its training or testing'
            )
    return {name: Yield(taps.calls(name), [tuple(m.shape) for m in taps[name]]) for name in names}


def _own_sizes(model: Any) -> list[tuple[int, int]]:
    """Image sizes that a model was made for: some run at no other."""
    found = (
        getattr(getattr(model, 'backbone', None), 'img_size', None),
        getattr(getattr(model, 'data_preprocessor', None), 'size', None),
        (getattr(model, 'test_cfg', None) or {}).get('crop_size'),
    )
    return [(x, x) if isinstance(x, int) else (x[0], x[1]) for x in found if x]


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


def _batch(
    model: nn.Module, shape: tuple[int, int], device: str
) -> tuple[Tensor, list[BaseDataElement]]:
    """Two blank images, and samples that say their size."""
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    channels = 3 if mean is None else len(mean)
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
    return torch.zeros(2, channels, *shape, device=device), [sample, copy.copy(sample)]
