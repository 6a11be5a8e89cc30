"""Values and paths as a config writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Any

__all__ = ['BASE', 'WIDTH', 'relative', 'spelt']

# Comes before the other bases of a recipe; only the repository has it.
BASE = Path(__file__).resolve().parents[3] / 'configs' / '_base_' / 'kd_dense.py'
WIDTH = 99


def relative(path: Path, folder: Path) -> str:
    """A path as a config names it that lies in a folder."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def spelt(value: Any, column: int = 0, indent: int = 0) -> str:
    """A nested value as a config writes it: on one line if it fits, else an item a line.

    Args:
        value: Dicts, lists and plain values.
        column: Where on its line it begins.
        indent: Of that line.

    Examples:
        >>> spelt(dict(type='CWDLoss', weight=5.0))
        "dict(type='CWDLoss', weight=5.0)"
        >>> print(spelt([dict(type='LoadImageFromFile', backend_args=None)] * 2, 60))
        [
            dict(type='LoadImageFromFile', backend_args=None),
            dict(type='LoadImageFromFile', backend_args=None)]
    """
    flat = _flat(value)
    if column + len(flat) < WIDTH or not isinstance(value, (Mapping, list, tuple)) or not value:
        return flat
    inner = indent + 4
    start, end = _brackets(value)
    if isinstance(value, Mapping):
        heads = [_key(value, key) for key in value]
        items = [
            head + spelt(item, inner + len(head), inner)
            for head, item in zip(heads, value.values(), strict=True)
        ]
    else:
        items = [spelt(item, inner, inner) for item in value]
    pad = '\n' + ' ' * inner
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    return start + pad + f',{pad}'.join(items) + comma + end


def _flat(value: Any) -> str:
    start, end = _brackets(value)
    if isinstance(value, Mapping):
        return start + ', '.join(_key(value, k) + _flat(v) for k, v in value.items()) + end
    if isinstance(value, (list, tuple)):
        comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
        return start + ', '.join(map(_flat, value)) + comma + end
    return repr(value)


def _brackets(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return ('dict(', ')') if _is_plain(value) else ('{', '}')
    return ('[', ']') if isinstance(value, list) else ('(', ')')


def _key(value: Mapping[Any, Any], key: Any) -> str:
    return f'{key}=' if _is_plain(value) else f'{key!r}: '


def _is_plain(value: Mapping[Any, Any]) -> bool:
    """Whether all keys can be named arguments."""
    return all(isinstance(k, str) and k.isidentifier() and not iskeyword(k) for k in value)
