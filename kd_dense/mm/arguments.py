"""Compare what a config says with the signature of what it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, isclass, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kd_dense.taps import near_names

__all__ = ['check_arguments']

PLAIN: dict[Any, type] = {float: Real, int: Integral, bool: bool, str: str, NoneType: NoneType}


def check_arguments(owner: str, build: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Make sure that arguments are known, complete, and of the types that are annotated.

    Numbers, texts, ``bool``, ``None`` and ``Literal`` are compared; other types are left to
    what is built. A ``bool`` is no number here.

    Args:
        owner: What messages call it.
        build: A class or a function.
        given: Arguments by name.

    Raises:
        ValueError: If an argument is unknown or missing, or its value is of another type.

    Examples:
        >>> def paint(width: float, colour: Literal['red', 'blue'] | None = None): ...
        >>> check_arguments('paint', paint, dict(width=2, colour='red'))
        >>> check_arguments('paint', paint, dict(width='2'))
        Traceback (most recent call last):
            ...
        ValueError: paint expects width as float, got '2'
        >>> check_arguments('paint', paint, dict(width=2, color='red'))
        Traceback (most recent call last):
            ...
        ValueError: paint has no argument 'color', did you mean 'colour'?
    """
    parameters = signature(build).parameters
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    try:
        hints = get_type_hints(build.__init__ if isclass(build) else build)
    except (NameError, TypeError):  # names that are imported for type checkers only
        hints = {}
    for name, value in given.items():
        if name not in parameters and not takes_any:
            raise ValueError(f'{owner} has no argument {name!r}, {near_names(name, parameters)}')
        if name in hints and not _is_of(value, hints[name]):
            raise ValueError(f'{owner} expects {name} as {_spelt(hints[name])}, got {value!r}')
    for name, parameter in parameters.items():
        named = parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        if named and parameter.default is Parameter.empty and name not in given:
            raise ValueError(f'{owner} lacks the argument {name!r}')


def _is_of(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if origin in (Union, UnionType):
        return any(_is_of(value, one) for one in get_args(hint))
    if hint not in PLAIN:
        return True
    return isinstance(value, PLAIN[hint]) and (hint is bool or not isinstance(value, bool))


def _spelt(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ' or '.join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return ' or '.join(map(_spelt, get_args(hint)))
    return 'None' if hint is NoneType else getattr(hint, '__name__', str(hint))
