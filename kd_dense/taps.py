"""Taps: named places of a model whose output is recorded while the model runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ['TapError', 'Taps', 'near_names']


_WRAPPED = {'_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_orig_mod'}


class TapError(ValueError):
    """A tap that does not exist, never ran, or yields maps that cannot be used."""


def near_names(name: str, known: Iterable[str], count: int = 5) -> str:
    """Say which known names are near a misspelt one, for the end of an error message.

    Examples:
        >>> near_names('nekc', ['neck', 'backbone'])
        "did you mean 'neck'?"
        >>> near_names('x', ['neck', 'backbone'])
        "known are 'backbone', 'neck'"
    """
    known = sorted(set(known), key=lambda one: (one.count('.'), one))
    near = get_close_matches(name, known, count, cutoff=0.5)
    if near:
        return f'did you mean {", ".join(map(repr, near))}?'
    more = ', ...' if len(known) > 20 else ''
    return f'known are {", ".join(map(repr, known[:20]))}{more}'


class Taps:
    """Record the outputs of named places of a model.

    A place is a module, named as in ``model.named_modules()`` (``'neck'``,
    ``'decode_head.conv_seg'``), or a method of a module (``'bbox_head.get_targets'``). Where
    a place yields several maps, because it returns a list or runs several times, an index
    chooses among them: ``'neck[0]'``, ``'neck[:4]'``. A ``*`` stands for every child at its
    place that has the rest of the path, in their order: ``'neck.fpn_convs.*.conv'``. Of
    several names with a ``|`` between them all are meant: ``'bbox_head.cls_convs|reg_convs.0'``.

    A place is found by name each time recording starts, and its ``forward`` is wrapped only
    until recording ends: the model may be converted, copied, compiled and saved in between.
    (A forward hook would miss code that calls ``module.forward(x)``, as mmseg does.)

    Args:
        names: The taps.
        seams: Those of them whose maps a hook is to see in the backward pass: compiled code is
            cut there, because no hook sees the inside of it.

    Raises:
        TapError: If a name is not of that form.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> taps = Taps(['1'])
        >>> with taps.on(model):
        ...     logits = model(torch.zeros(1, 3, 4, 4))
        >>> [tuple(m.shape) for m in taps['1']]
        [(1, 8, 4, 4)]
        >>> taps.clear()
    """

    def __init__(self, names: Iterable[str], seams: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.seams = tuple(seams)
        self._parsed = {name: _parse(name) for name in self.names}
        self._places: dict[str, _Place] = {}
        self._found: dict[str, list[_Place]] = {}  # by path, which may have wildcards
        self._on: list[_Place] = []
        self._held: dict[str, list[Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Taps, (self.names, self.seams)  # a copy starts without records

    @contextmanager
    def on(
        self,
        model: nn.Module,
        only: Collection[str] | None = None,
        stop_after: Mapping[str, int] | None = None,
    ) -> Iterator[Taps]:
        """Record while the body of a ``with`` statement runs ``model``.

        Args:
            model: The model that the names belong to.
            only: Record these taps alone.
            stop_after: Leave the body as soon as each recorded tap has run so often; the
                layers behind the last tap then do not run. Taps that are not named here
                count as 1.

        Raises:
            TapError: If a place does not exist; the message names near ones.
        """
        self.start(model, only, stop_after)
        try:
            yield self
        except _Stop as stop:
            if stop.taps is not self:
                raise
        finally:
            self.stop()

    @torch.compiler.disable
    def start(
        self,
        model: nn.Module,
        only: Collection[str] | None = None,
        stop_after: Mapping[str, int] | None = None,
    ) -> None:
        """Begin to record; [`on`][] without the ``with`` statement."""
        self.clear()
        wanted = self.names if only is None else [n for n in self.names if n in only]
        paths = dict.fromkeys(self._parsed[n][0] for n in wanted)
        self._found = {path: self._places_of(model, path) for path in paths}
        places = {place: None for path in paths for place in self._found[path]}
        seams = {self._parsed[name][0] for name in self.seams}
        for path in paths:
            for place in self._found[path]:
                place.seam = path in seams
        calls = {} if stop_after is None else {n: stop_after.get(n, 1) for n in wanted}

        def stop_if_done() -> None:
            if all(self.calls(name) >= count for name, count in calls.items()):
                raise _Stop(self)

        try:
            for place in places:
                place.put_on(model, None if stop_after is None else stop_if_done)
                self._on.append(place)
        except BaseException:
            self.stop()
            raise

    def _places_of(self, model: nn.Module, path: str) -> list[_Place]:
        concrete = _expand(model, path) if {*'*|'} & {*path} else [path]
        for one in concrete:
            if one not in self._places:
                self._places[one] = _Place(one)
        return [self._places[one] for one in concrete]

    @torch.compiler.disable
    def stop(self) -> None:
        """End recording. What was recorded stays until [`clear`][]."""
        while self._on:  # last on, first off: two names may stand for one method
            self._on.pop().take_off()

    def clear(self) -> None:
        """Drop what was recorded, and with it the graph that it holds."""
        for place in self._places.values():
            place.calls.clear()
        self._held = {}

    def hold(self, maps: Mapping[str, list[Tensor]]) -> None:
        """Have maps by tap as if they had just been recorded."""
        self._held = {**maps}

    def places(self, name: str) -> list[str]:
        """The paths of the modules or methods that a tap was last found to stand for."""
        return [place.path for place in self._found.get(self._parsed[name][0], [])]

    def calls(self, name: str) -> int:
        """How often the place of a tap ran."""
        return len(self.returned(name))

    def returned(self, name: str) -> list[Any]:
        """What the place of a tap returned, call by call, whatever it is."""
        return [call.output for call in self._calls(name)]

    def given(self, name: str) -> list[tuple[Any, ...]]:
        """What a method that a tap names was given by position, call by call."""
        return [call.given for call in self._calls(name)]

    def check_can_run(self, name: str) -> None:
        """Make sure that a tap, as it was last found, names something that may run.

        Raises:
            TapError: If it names what nobody calls, as a list of modules.
        """
        path = self._parsed[name][0]
        hollow = [place.hollow for place in self._found.get(path, [])]
        if hollow and all(hollow):
            raise TapError(
                f'tap {name!r} can never run: a {hollow[0]} has no forward() of its own; say '
                f"'{path}.*' for all that it holds, or name one of them"
            )

    def _calls(self, name: str) -> list[_Call]:
        places = self._found.get(self._parsed[name][0], [])
        return [call for place in places for call in place.calls]

    def __getitem__(self, name: str) -> list[Tensor]:
        """The maps that a tap recorded, in the order of their calls.

        Raises:
            TapError: If the place did not run, yielded no tensor, has fewer maps than the
                index asks for, or a later layer has overwritten a map in place.
        """
        if name in self._held:
            return self._held[name]
        path, index = self._parsed[name]
        calls = self._calls(name)
        if not calls:
            self.check_can_run(name)
            raise TapError(f'tap {name!r} did not run')
        recorded = [pair for call in calls for pair in call.maps]
        if not recorded:
            raise TapError(f'tap {name!r} ran, but returned no tensor')
        try:
            chosen = recorded[index] if isinstance(index, slice) else [recorded[index]]
        except IndexError:
            chosen = []
        if not chosen:
            raise TapError(f'tap {name!r} asks for a map that is not there: {path!r} yields '
                           f'{len(recorded)}')  # fmt: skip
        for tensor, version in chosen:
            if version is not None and tensor._version != version:
                raise TapError(
                    f'tap {name!r}: a later layer overwrites this map in place (as '
                    'ReLU(inplace=True) does); tap that layer or the one before it instead'
                )
        return [tensor for tensor, _ in chosen]


class _Stop(BaseException):
    """Ends a forward pass once everything has been recorded; never seen by a user."""

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        self.taps = taps


class _Call(NamedTuple):
    """What one call returned, and its tensors with their in-place counters.

    Of a method, what it was given as well; not of a module, whose inputs would need memory.
    """

    output: Any
    maps: list[tuple[Tensor, int | None]]
    given: tuple[Any, ...]


class _Place:
    """One wrapped method of one module. The wrapper stays the same from step to step."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[_Call] = []
        self.hollow = ''  # the class of a module without a forward of its own
        self.seam = False
        self._owner: nn.Module | None = None
        self._method = ''
        self._previous: Any = None
        self._original: Callable[..., Any] = _not_on
        self._after: Callable[[], None] | None = None

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            output = self._original(*args, **kwargs)
            if self.seam:
                _cut()
            given = () if self._method == 'forward' else args
            self.calls.append(_Call(output, [(t, _version(t)) for t in tensors_in(output)], given))
            if self._after is not None:
                self._after()
            return output

        self._wrapper = wrapper

    def put_on(self, model: nn.Module, after: Callable[[], None] | None) -> None:
        owner, self._method = _find(model, self.path)
        self._previous = owner.__dict__.get(self._method)
        original = getattr(owner, self._method)
        idle = self._previous is None and type(owner).forward is nn.Module.forward
        self.hollow = type(owner).__name__ if idle and self._method == 'forward' else ''
        if self._original != original:  # keep the object: compiled code is guarded by it
            self._original = original
        self._after = after
        owner.__dict__[self._method] = self._wrapper
        self._owner = owner

    def take_off(self) -> None:
        if self._owner is None:
            return
        if self._previous is None:
            del self._owner.__dict__[self._method]
        else:  # an instance's own forward, as activation checkpointing leaves it
            self._owner.__dict__[self._method] = self._previous
        self._owner = self._previous = self._after = None


@torch.compiler.disable
def _cut() -> None:
    """Compiled code ends here, and begins anew."""


def _not_on(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError('a tap ran outside of recording')


def _parse(name: str) -> tuple[str, int | slice]:
    """Split ``path[index]`` into the path and an index or slice."""
    match = re.fullmatch(r'([\w.*|]+)(?:\[(-?\d+)\]|\[(-?\d*):(-?\d*)\])?', name)
    if not match:
        raise TapError(
            f"expected a tap like 'neck', 'decode_head.conv_seg', 'neck[0]' or 'neck[:4]', "
            f'got {name!r}'
        )
    path, index, start, stop = match.groups()
    if index is not None:
        return path, int(index)
    return path, slice(int(start) if start else None, int(stop) if stop else None)


def _find(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module and the name of its method that a path stands for."""
    owner, *rest = model, *path.split('.')
    for depth, part in enumerate(rest):
        child = _child(owner, part)
        if child is None:
            is_method = depth == len(rest) - 1 and callable(getattr(owner, part, None))
            if is_method and not part.startswith('__'):
                return owner, part
            raise TapError(
                f'there is no tap {path!r} in {type(model).__name__}: '
                f'{near_names(path, _names_near(model, owner, rest[:depth]))}'
            )
        owner = child
    return owner, 'forward'


def _child(owner: nn.Module, name: str) -> nn.Module | None:
    child = owner._modules.get(name)
    return _unwrapped(owner)._modules.get(name) if child is None else child


def _unwrapped(module: nn.Module) -> nn.Module:
    """What lies in the wrappers that FSDP, checkpointing and ``torch.compile`` put around it."""
    while len(module._modules) == 1 and (inner := _WRAPPED & module._modules.keys()):
        module = module.get_submodule(inner.pop())
    return module


def _expand(model: nn.Module, path: str) -> list[str]:
    """All paths that a path with wildcards stands for."""
    found = ['']
    for depth, part in enumerate(path.split('.')):
        before, found = found, []
        for prefix in before:
            owner = _unwrapped(_find(model, prefix)[0] if prefix else model)
            names = list(owner._modules) if part == '*' else part.split('|')
            children = [n for n in names if owner._modules.get(n) is not None]
            found += [f'{prefix}.{n}' if prefix else n for n in children]
        if not found:
            raise TapError(
                f'there is no tap {path!r} in {type(model).__name__}: nothing matches '
                f'{".".join(path.split(".")[: depth + 1])!r}'
            )
    return found


def _names_near(model: nn.Module, owner: nn.Module, prefix: list[str]) -> list[str]:
    """Names to propose: all modules, and the public methods of the last module found."""
    methods = (
        '.'.join([*prefix, name])
        for cls in type(owner).__mro__
        if cls is not nn.Module and issubclass(cls, nn.Module)
        for name, value in vars(cls).items()
        if callable(value) and not name.startswith('_')
    )
    modules = [name for name, _ in model.named_modules() if name]
    return [*modules, *methods] if prefix else modules


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors of a nested output, depth first."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_in(value)


def _version(tensor: Tensor) -> int | None:
    """The in-place counter, where there is one."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version
