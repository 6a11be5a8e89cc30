"""Configs in mmengine's pure Python style, where a type is a class that the file imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import Registry

import kd_dense.mm  # noqa: F401  (before any config is read)

REGISTRIES = [found for found in vars(registry).values() if isinstance(found, Registry)]


def write_pure(config: Config, path: Path) -> Path:
    """Write a config in the pure Python style, without a default scope, as mmdet's own are.

    Names that a framework knows by another word, as ``BN``, stay text, as they do there.
    """
    imports: dict[str, str] = {}
    scope = config.get('default_scope')
    values = {**config.to_dict(), 'default_scope': None}
    lines = [f'{key} = {_spelt(value, scope, imports)}' for key, value in values.items()]
    head = [f'from {module} import {name}' for name, module in imports.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([*head, '', *lines, '']))
    return path


def _spelt(value: Any, scope: str | None, imports: dict[str, str]) -> str:
    if isinstance(value, (list, tuple)):
        items = ''.join(f'{_spelt(item, scope, imports)}, ' for item in value)
        return f'[{items}]' if isinstance(value, list) else f'({items})'
    if not isinstance(value, dict):
        return repr(value)
    scope = value.get('_scope_', scope)
    fields = []
    for key, item in value.items():
        spelt = _kind(item, scope, imports) if key == 'type' else _spelt(item, scope, imports)
        if key != '_scope_':
            fields.append(f'{key!r}: {spelt}')
    return '{' + ', '.join(fields) + '}'


def _kind(name: str, scope: str | None, imports: dict[str, str]) -> str:
    own = name.rpartition('.')[2]
    for one in REGISTRIES:
        with one.switch_scope_and_registry(scope) as here:
            found = here.get(name)
        if getattr(found, '__name__', None) == own:
            assert imports.setdefault(own, found.__module__) == found.__module__, own
            return own
    return repr(name)
