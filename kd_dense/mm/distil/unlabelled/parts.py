"""A batch that the student sees in two parts, and what is recorded of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kd_dense.taps import TapError, tensors_in

__all__ = ['Features', 'Joined', 'Rows', 'shared_features']

Alias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Joined:
    """What taps have recorded of a batch that the student saw in one part or in two."""

    def __init__(self, taps: Sequence[Any], total: int) -> None:
        self._taps, self._total = taps, total

    def maps(self, name: str, alias: Alias | None = None) -> list[Tensor]:
        """The maps of all pictures.

        Args:
            name: The tap.
            alias: Gives what stands for maps as they were recorded.
        """
        parts = [[*taps[name]] for taps in self._taps if taps.calls(name)]
        if not parts:
            raise TapError(f'tap {name!r} did not run')
        if alias is not None:
            parts = [[*alias(part)] for part in parts]
        if len(parts[0][0]) == self._total:
            return parts[0]
        if len({len(part) for part in parts}) > 1 or any(
            sum(len(x) for x in maps) != self._total for maps in zip(*parts, strict=True)
        ):
            shapes = ' and '.join(str([tuple(x.shape) for x in part]) for part in parts)
            raise TapError(
                f'tap {name!r}: the maps of {self._total} pictures cannot be put together of '
                f'{shapes}: tap backbone or neck for pictures without labels'
            )
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def __getitem__(self, name: str) -> list[Tensor]:
        return self.maps(name)

    def calls(self, name: str) -> int:
        """How often the place of a tap ran."""
        return max(int(taps.calls(name)) for taps in self._taps)


class Rows:
    """What taps have recorded of the first pictures of a batch."""

    def __init__(self, taps: Any, first: int, total: int) -> None:
        self._taps, self._total, self._first = taps, total, first

    def maps(self, name: str, alias: Alias | None = None) -> list[Tensor]:
        """The maps of these pictures; see [`Joined.maps`][]."""
        maps: Sequence[Tensor] = self._taps[name]
        if alias is not None:
            maps = alias(maps)
        return [x[: self._first] if len(x) == self._total else x for x in maps]

    def __getitem__(self, name: str) -> list[Tensor]:
        return self.maps(name)

    def __getattr__(self, name: str) -> Any:  # calls, given and returned: of the loss
        return getattr(self._taps, name)


class Features:
    """Stands for ``extract_feat()``: that runs once, on all pictures, for those asked for."""

    def __init__(self, extract: Callable[[Any], Any], inputs: Any) -> None:
        self._extract, self.whole = extract, inputs
        self.apart = False  # whether each part has to run for itself
        self.found: Any = None
        self._part: tuple[Any, slice] = (None, slice(0))

    def part(self, first: int, last: int) -> Any:
        """Some of the pictures, whose features are asked for next."""
        whole = (first, last) == (0, len(self.whole))
        part = self.whole if whole else self.whole[first:last]
        self._part = part, slice(first, last)
        return part

    def __call__(self, inputs: Any) -> Any:
        part, rows = self._part
        if inputs is not part or self.apart:
            return self._extract(inputs)
        if self.found is None:
            self.found = self._extract(self.whole)
            for x in tensors_in(self.found):
                if len(x) != len(self.whole):
                    raise ValueError(
                        f'the features of {len(self.whole)} pictures have shape '
                        f'{tuple(x.shape)}: those without labels cannot be told from the '
                        'others; train this student without unlabelled=True'
                    )
        return _rows(self.found, rows)


@contextmanager
def shared_features(student: Any, inputs: Any) -> Iterator[Features]:
    """Let ``extract_feat()`` run on all pictures where it is called for some."""
    has = hasattr(student, 'extract_feat')
    features = Features(student.extract_feat if has else _none, inputs)
    before = vars(student).get('extract_feat')
    if has:
        student.__dict__['extract_feat'] = features
    try:
        yield features
    finally:
        if before is not None:
            student.__dict__['extract_feat'] = before
        elif has:
            del student.__dict__['extract_feat']


def _none(inputs: Any) -> Any:
    raise AssertionError('a student without extract_feat')


def _rows(found: Any, rows: slice) -> Any:
    """The same of some pictures alone."""
    if isinstance(found, Tensor):
        return found[rows]
    if isinstance(found, Mapping):
        return type(found)({key: _rows(value, rows) for key, value in found.items()})  # type: ignore[call-arg]
    if isinstance(found, tuple) and hasattr(found, '_fields'):
        return type(found)(*(_rows(one, rows) for one in found))
    if isinstance(found, (list, tuple)):
        return type(found)(_rows(one, rows) for one in found)
    return found
