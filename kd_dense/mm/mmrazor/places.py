"""What mmrazor records in a model, as taps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from kd_dense.mm.batches.made_up import blank_batch
from kd_dense.mm.configs import build_model, type_name
from kd_dense.mm.mmrazor.note import CannotError
from kd_dense.mm.models.probe import SIZES, QuickNorms, forward, replicate
from kd_dense.taps import TapError, Taps, tensors_in

__all__ = ['Places', 'joined', 'skeleton']

# Recorders that are no taps, and why.
NO_TAPS = {
    'FunctionInputs': 'it records what a function is given, and taps record what modules yield',
    'FunctionOutputs': 'it records a function, and taps are modules and their methods: tap the '
    'module that calls it, or wrap it into one',
    'MethodInputs': 'it records what a method is given, and taps record what it yields: tap the '
    'module that yields that',
    'ModuleInputs': 'it records what a module is given, and taps record what modules yield: tap '
    'the module before it',
    'Parameter': 'it records a parameter, and taps record what modules yield',
}


def skeleton(config: Config) -> nn.Module | None:
    """The model of a config without memory for its weights; None, if it cannot be built."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        for device in ('meta', 'cpu'):
            try:
                with torch.device(device):
                    model: nn.Module = build_model(config)
                    return model
            except Exception:  # whatever a model raises: some compute with their weights
                continue
    return None


class Places:
    """Where the taps of a model lie.

    Args:
        model: The model, which may be without memory; or None, if it could not be built, where
            each place is taken to yield one map, or a flat list of them.
        sources: Places that will be asked for, to look at all of them in one forward pass.
    """

    def __init__(self, model: nn.Module | None, sources: Iterable[str] = ()) -> None:
        self.model = model
        self._found: dict[str, list[Any] | None] = {}
        self._sources = dict.fromkeys(sources)

    def tap(self, recorder: Mapping[str, Any], call: int = 0, item: int | None = None) -> str:
        """The tap of a record.

        Args:
            recorder: Config of a recorder.
            call: ``record_idx`` of mmrazor: which call of the place.
            item: ``data_idx``: which of the things that the call returns; None for all.

        Raises:
            CannotError: If no tap is that.
        """
        path = self._path(recorder)
        calls = self._returned(path)
        if calls is None:  # not known: one call that yields one map, or a list of maps
            if call and item is not None:
                raise CannotError(
                    'it has a record_idx and a data_idx, which one index can only be made of '
                    'with the model, and that could not be built and run here'
                )
            index = call or item
            return path if item is None and not call else f'{path}[{index}]'
        if call >= len(calls):
            raise CannotError(f'record_idx={call}, and {path} runs {len(calls)} times')
        sizes = [_count(output) for output in calls]
        start, wanted = sum(sizes[:call]), calls[call]
        if item is not None:
            if not isinstance(wanted, (list, tuple)) or item >= len(wanted):
                raise CannotError(f'data_idx={item}, and {path} does not yield as many maps')
            start += sum(_count(one) for one in wanted[:item])
            wanted = wanted[item]
        count = _count(wanted)
        if not count:
            raise CannotError(f'{path} yields no tensor there')
        if count == sum(sizes):
            return path
        return f'{path}[{start}]' if count == 1 else f'{path}[{start or ""}:{start + count}]'

    def _path(self, recorder: Mapping[str, Any]) -> str:
        kind = type_name(recorder)
        if kind in NO_TAPS:
            raise CannotError(f'{kind}: {NO_TAPS[kind]}')
        source = str(recorder.get('source') or '')
        if kind == 'MethodOutputs':
            return self._method(source)
        if kind != 'ModuleOutputs' or not re.fullmatch(r'[\w.]+', source):
            raise CannotError(f'there is no tap for a recorder {dict(recorder)}')
        if source.startswith('roi_head'):
            raise CannotError(
                f'{source} lies behind region proposals, where student and teacher look at '
                'different boxes: tap the backbone, the neck or the rpn_head instead, or write a '
                'term with shared_rois=True'
            )
        return source

    def _method(self, source: str) -> str:
        """The tap of a method that is named by its class."""
        *_, kind, method = ['', *source.split('.')]
        if self.model is None:
            raise CannotError(
                f'MethodOutputs of {kind} is a tap of the module of that class, and the model '
                'could not be built here to look for it'
            )
        names = [
            name
            for name, module in self.model.named_modules()
            if name and kind in [cls.__name__ for cls in type(module).__mro__]
        ]
        if len(names) != 1:
            raise CannotError(
                f'MethodOutputs of {kind} is a tap of one module, and {len(names)} of the model '
                f'are of that class{": " if names else ""}{", ".join(names[:5])}'
            )
        return names[0] if method == 'forward' else f'{names[0]}.{method}'

    def _returned(self, path: str) -> list[Any] | None:
        if path not in self._found:
            self._found[path] = None
            if self.model is not None:
                _check_place(self.model, path)
                paths = {path: None, **self._sources}
                self._found.update(_run(self.model, [p for p in paths if self._is_there(p)]))
        return self._found[path]

    def _is_there(self, path: str) -> bool:
        try:
            _check_place(self.model, path)
        except CannotError:
            return False
        return True

    def whole(self, taps: Sequence[str], path: str) -> bool:
        """Whether one path stands for these taps, in their order, and for no others.

        Args:
            taps: Maps of one place, or places that a path with a ``*`` matches.
            path: The path.
        """
        if self.model is None:
            return False
        if '*' not in path:
            return sum(map(_count, self._returned(path) or [])) == len(taps)
        found = Taps([path])
        try:
            with found.on(self.model):
                return found.places(path) == list(taps)
        except TapError:
            return False


def _count(output: Any) -> int:
    return len([*tensors_in(output)])


def _check_place(model: Any, path: str) -> None:
    """Raise ``CannotError`` unless there is such a place."""
    try:
        with Taps([path]).on(model):
            pass
    except TapError as error:
        raise CannotError(str(error)) from None


@torch.no_grad()
def _run(model: nn.Module, paths: Sequence[str]) -> dict[str, list[Any] | None]:
    """What the calls of places return; None, if they do not run in a forward pass."""
    taps = Taps(paths)
    for size in SIZES:
        replica = replicate(model, 'meta').eval()
        try:
            inputs, samples = blank_batch(model, size, 'meta')
            with torch.device('meta'), QuickNorms(), taps.on(replica):
                forward(replica, inputs, samples, paths)
        except Exception:  # whatever a layer raises: behind the taps, or at this size
            pass
        if all(taps.calls(path) for path in paths):
            break
    return {path: taps.returned(path) or None for path in paths}


def joined(
    taps: Sequence[tuple[str, str]], whole: Sequence[Callable[[list[str], str], bool]]
) -> tuple[str, str] | None:
    """One tap for several, in the student and in the teacher, if there is one.

    Args:
        taps: Pairs of taps.
        whole: [`Places.whole`][] of the student and of the teacher.

    Examples:
        >>> no, yes = lambda taps, path: False, lambda taps, path: True
        >>> joined([('neck[0]', 'neck[0]'), ('neck[1]', 'neck[1]')], [no, no])
        ('neck[:2]', 'neck[:2]')
        >>> joined([('a.0.b', 'x[3]'), ('a.1.b', 'x[4]')], [yes, no])
        ('a.*.b', 'x[3:5]')
    """
    sides = [_one([pair[side] for pair in taps], whole[side]) for side in (0, 1)]
    return None if None in sides else (str(sides[0]), str(sides[1]))


def _one(taps: list[str], whole: Callable[[list[str], str], bool]) -> str | None:
    indexed = [re.fullmatch(r'(.+)\[(\d+)\]', tap) for tap in taps]
    found = [(m[1], int(m[2])) for m in indexed if m]
    if len(found) == len(taps):
        (path, first), last = found[0], found[-1][1]
        if found == [(path, first + n) for n in range(len(found))]:
            if not first and whole(taps, path):
                return path
            return f'{path}[{first or ""}:{last + 1}]'
        return None
    if any(indexed) or len({tap.count('.') for tap in taps}) > 1:
        return None
    columns = [*zip(*(tap.split('.') for tap in taps), strict=True)]
    differ = [len({*column}) > 1 for column in columns]
    if sum(differ) != 1:
        return None
    wildcard = '.'.join(
        '*' if other else column[0] for other, column in zip(differ, columns, strict=True)
    )
    return wildcard if whole(taps, wildcard) else None
