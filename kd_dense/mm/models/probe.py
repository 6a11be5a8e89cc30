"""One small forward pass that tells what the taps of a model yield."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kd_dense.mm.batches.made_up import add_labels, blank_batch
from kd_dense.taps import TapError, Taps

__all__ = [
    'FEATURES',
    'LARGEST',
    'Probe',
    'QuickNorms',
    'Yield',
    'forward',
    'needs_features_only',
    'probe',
    'replicate',
]

FEATURES = ('backbone', 'neck')
SIZES = tuple((size, size) for size in (64, 128, 256, 512))
LARGEST = max(SIZES)[0]
# Norms, and when it is known that they do not refuse a map, but yield one like it.
LIKE_THEIR_INPUT: dict[Any, Callable[..., bool]] = {
    F.batch_norm: lambda x, mean, *_: mean is not None and mean.shape == x.shape[1:2],
    F.group_norm: lambda x, groups, weight=None, *_: (
        x.shape[1] % groups == 0 and (weight is None or weight.shape == x.shape[1:2])
    ),
    F.layer_norm: lambda x, shape, *_: x.shape[-len(shape) :] == (*shape,),
}


class Probe(NamedTuple):
    """What the taps yield, by tap, in both models on images of one size (H, W).

    ``by_loss`` says that the teacher runs no further than its backbone and neck unless it
    computes its own loss; ``student_by_loss`` says so of the student.
    """

    student: dict[str, Yield]
    teacher: dict[str, Yield]
    size: tuple[int, int]
    by_loss: bool
    student_by_loss: bool


class _NotInForwardError(TapError):
    """A tap that does not run in the forward pass, and perhaps does in the loss."""


class QuickNorms(TorchFunctionMode):
    """Spares norms on the ``meta`` device, which take half of the time of a probe there."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        fits = LIKE_THEIR_INPUT.get(func)
        if fits is not None and len(args) > 1:
            x: Tensor = args[0]
            if x.is_meta and x.dim() > 1 and x.numel() > x.shape[1] and fits(*args):
                return torch.empty_like(x)
        return func(*args, **(kwargs or {}))


class Yield(NamedTuple):
    """What a tap yields: how often its place runs, and the shape of each map."""

    calls: int
    shapes: list[tuple[int, ...]]


def needs_features_only(names: Iterable[str]) -> bool:
    """Whether all taps lie in backbone and neck."""
    return all(name.partition('.')[0].partition('[')[0] in FEATURES for name in names)


def forward(
    model: Any,
    inputs: Any,
    data_samples: Any,
    names: Iterable[str],
    by_loss: bool = False,
) -> None:
    """Run as much of an OpenMMLab model as taps may need.

    Args:
        model: The model.
        inputs: Its batch.
        data_samples: The samples of the batch.
        names: The taps. Where all lie in backbone and neck, these run alone if the model can, and
            auxiliary heads, which a segmenter runs in its loss only, run where they are tapped.
        by_loss: Compute the model's own loss: trackers, semi-supervised detectors and some
            others run in no other way on the batches of their training.
    """
    names = [*names]
    if by_loss:
        model.loss(inputs, copy.deepcopy(data_samples))  # some models write into the samples
    elif needs_features_only(names) and hasattr(model, 'extract_feat'):
        model.extract_feat(inputs)
    else:
        head: Any = getattr(model, 'decode_head', None)
        with _auxiliary_heads(model, names):
            if _takes_samples(head):  # of mmdet, in a segmenter that does not give them to it
                head.forward(model.extract_feat(inputs), _with_batch_shape(inputs, data_samples))
            else:
                model(inputs, data_samples, mode='tensor')


def _takes_samples(head: Any) -> bool:
    """Whether the forward of a head of a segmenter wants data samples, as Mask2Former's."""
    return head is not None and 'batch_data_samples' in signature(type(head).forward).parameters


def _with_batch_shape(inputs: Any, data_samples: Any) -> list[BaseDataElement]:
    """What is said of each image, as mmdet's data preprocessor says it."""
    size = tuple(inputs.shape[-2:])
    return [
        BaseDataElement(metainfo={**sample.metainfo, 'batch_input_shape': size})
        for sample in data_samples
    ]


@contextmanager
def _auxiliary_heads(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Let the auxiliary heads that are tapped run as soon as a segmenter has its features."""
    whole = getattr(model, 'auxiliary_head', None)
    heads: dict[str, Any] = {'auxiliary_head': whole}
    if isinstance(whole, nn.ModuleList):
        heads = {f'auxiliary_head.{index}': head for index, head in enumerate(whole)}
    depth = 2 if isinstance(whole, nn.ModuleList) else 1
    wanted = ['.'.join(n.partition('[')[0].split('.')[:depth]) for n in names]
    tapped = [head for place, head in heads.items() if any(fnmatch(place, w) for w in wanted)]
    if not tapped or not hasattr(model, 'extract_feat'):
        yield
        return
    extract_feat, own = model.extract_feat, 'extract_feat' in vars(model)

    def extract_and_run(inputs: Any) -> Any:
        features = extract_feat(inputs)
        for head in tapped:
            head.forward(features)
        return features

    model.extract_feat = extract_and_run
    try:
        yield
    finally:
        if own:
            model.extract_feat = extract_feat
        else:
            del model.extract_feat


def probe(
    student: nn.Module,
    student_taps: Sequence[str],
    teacher: nn.Module,
    teacher_taps: Sequence[str],
    smallest: int = 0,
    first: tuple[int, int] | None = None,
) -> Probe:
    """Find out what each tap yields in both models, on images of one size.

    Args:
        student: An OpenMMLab model; weights, mode and random state stay as they are.
        student_taps: Its taps.
        teacher: Another one.
        teacher_taps: Its taps.
        smallest: Try no smaller height or width.
        first: A size, (height, width), to try before all others.

    Returns:
        What each tap yields in the student and in the teacher, and on images of which size.

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
    failures: dict[Any, str] = {}
    silent: TapError | None = None
    own = dict.fromkeys([*SIZES, *_own_sizes(student), *_own_sizes(teacher)])
    sizes = [size for size in own if min(size) >= smallest and size != first]
    sizes = [*([] if first is None else [first]), *sizes]
    for by_loss in (False, True):
        for size in sizes:
            try:
                found = [_yields(*one, size, by_loss) for one in both]
            except _NotInForwardError as error:
                failures[size, by_loss], silent = str(error), error
                if not by_loss:  # at no size
                    break
            except TapError:
                raise
            except Exception as error:  # any layer may refuse a size
                what = ' in its loss' if by_loss else ''
                why = str(error) or type(error).__name__
                failures[size, by_loss] = f'{size[0]}x{size[1]} pixels{what}: {why}'
                silent = None
                if isinstance(error, NotImplementedError):  # at no size
                    break
            else:
                (ours, ours_by_loss), (theirs, theirs_by_loss) = found
                return Probe(ours, theirs, size, theirs_by_loss, ours_by_loss)
    if silent is not None:
        raise TapError(str(silent))
    raise RuntimeError(
        'student and teacher cannot be tried out on blank images of one size:\n'
        + '\n'.join(failures.values())
    )


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    taps = Taps(names)
    with taps.on(model):
        pass
    for name in names:
        taps.check_can_run(name)
        if any(place.startswith('roi_head') for place in taps.places(name)):
            raise TapError(
                f'tap {name!r} lies behind region proposals, where student and teacher look '
                'at different boxes: tap the backbone, the neck or the rpn_head instead; or, in a '
                "box head, say shared_rois=True in the term, and the teacher's looks at the "
                "student's"
            )


@torch.no_grad()
def _yields(
    whose: str, model: nn.Module, names: Sequence[str], size: tuple[int, int], by_loss: bool
) -> tuple[dict[str, Yield], bool]:
    """What the taps yield at a size, and whether the model had to compute its loss for that.

    A copy without data runs on the ``meta`` device; where an operator has no kernel there, a
    real copy on the CPU; and if ``by_loss``, at last one that computes its loss, unless all taps
    have run before.
    """
    taps = Taps(names)
    problem = _run(model, taps, size, 'meta')
    if problem is not None:  # that device lacks many kernels
        problem = _run(model, taps, size, 'cpu')
    idle = _idle(taps)
    in_loss = problem is not None or idle is not None
    never = '{}: tap {!r} never runs in the forward pass of ' + type(model).__name__
    if in_loss and not by_loss:
        raise problem or _NotInForwardError(never.format(whose, idle))
    ran = problem is None
    if in_loss:
        problem = _run(model, taps, size, 'cpu', in_loss=True)
        idle = _idle(taps)
    if idle is not None:  # otherwise it fails behind the taps: the teacher will run no further
        if problem is None:
            raise TapError(f'{never.format(whose, idle)}, nor in its loss')
        if not ran:
            raise problem
        raise _NotInForwardError(
            f'{never.format(whose, idle)}, and its loss cannot be computed from made-up data '
            f'({type(problem).__name__}: {problem})'
        ) from problem
    try:
        maps = {name: taps[name] for name in names}
    except TapError as error:
        raise TapError(f'{whose}: {error}') from None
    found = {n: Yield(taps.calls(n), [tuple(m.shape) for m in maps[n]]) for n in names}
    return found, in_loss


def _run(
    model: nn.Module, taps: Taps, size: tuple[int, int], device: str, in_loss: bool = False
) -> Exception | None:
    """Record on a copy of a model in eval mode; returns what went wrong, if anything did."""
    replica = replicate(model, device)
    replica.eval()
    inputs, samples = blank_batch(model, size, device)
    if in_loss:
        add_labels(model, samples, size)
    try:
        with torch.device(device), QuickNorms(), taps.on(replica):
            forward(replica, inputs, samples, taps.names, in_loss)
    except Exception as error:  # whatever a layer raises
        return error
    return None


def _idle(taps: Taps) -> str | None:
    """A tap that did not run, if there is one."""
    return next((name for name in taps.names if not taps.calls(name)), None)


def _own_sizes(model: Any) -> list[tuple[int, int]]:
    """Image sizes that a model was made for: some run at no other."""
    found = (
        getattr(getattr(model, 'backbone', None), 'img_size', None),
        getattr(getattr(model, 'data_preprocessor', None), 'size', None),
        (getattr(model, 'test_cfg', None) or {}).get('crop_size'),
    )
    return [(x, x) if isinstance(x, int) else (x[0], x[1]) for x in found if x]


def replicate(model: nn.Module, device: str) -> nn.Module:
    """Copy a model to a device; on ``meta`` no weight is copied."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        data = (
            torch.empty_like(tensor, device='meta')
            if device == 'meta'
            else tensor.detach().to(device, copy=True)
        )
        memo[id(tensor)] = (
            nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
        )
    return copy.deepcopy(model, memo).to(device)
