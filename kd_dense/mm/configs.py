"""Configs: read by name or path, and built as they say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import get_installed_path

__all__ = [
    'NotFoundError',
    'RequestError',
    'build_model',
    'dicts_in',
    'distils',
    'near_configs',
    'read_config',
]

SUFFIXES = ('.py', '.json', '.yaml', '.yml')


class RequestError(ValueError):
    """What was asked for cannot be done; the message says why, and what to do.

    The commands print the message and end; it is never a fault of this package.
    """


class NotFoundError(RequestError, FileNotFoundError):
    """A file that was asked for does not exist."""


def read_config(
    source: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> Config:
    """Read a config.

    Args:
        source: A path, or a name as ``'mmdet::FOLDER/FILE.py'``; recipes of this package are
            ``'kd_dense::FOLDER/FILE.py'``.
        options: Settings to override, as ``{'train_cfg.max_iters': 100}``.
        pretrained: Whether to look up published weights, which become its ``model_path``.

    Returns:
        The config. Its ``filename`` says where it was found.

    Raises:
        NotFoundError: If it does not exist; near names are proposed.
        RequestError: If it is no config.
    """
    source = os.fspath(source)
    if '::' in source:
        config = _read_by_name(source, pretrained)
    elif not Path(source).expanduser().is_file():
        raise NotFoundError(
            f'the config {source} does not exist (looked in {Path.cwd()}); configs that come '
            "with a package are named like 'mmdet::retinanet/...'"
        )
    elif Path(source).suffix not in SUFFIXES:
        raise RequestError(f'expected a config (.py), got {source}')
    else:
        config = Config.fromfile(source)
    if options:
        config.merge_from_dict(dict(options))
    return config


def _read_by_name(source: str, pretrained: bool) -> Config:
    package, _, name = source.partition('::')
    if not package.isidentifier() or '/' not in name or '::' in name:
        raise RequestError(f"expected a name as 'mmdet::FOLDER/FILE.py', got {source}")
    if find_spec(package) is None:  # mmengine would go and install it
        raise NotFoundError(f'the config {source}: {package} is not installed')
    try:
        if pretrained:
            try:
                return get_config(source, pretrained=True)
            except AssertionError:  # mmengine asserts that weights are published
                pass
        return get_config(source)
    except FileNotFoundError as error:
        raise NotFoundError(f'the config {source} does not exist{near_configs(source)}') from error


def near_configs(source: str) -> str:
    """Name the config files of a package that are spelt nearly like the one asked for."""
    package, _, wanted = source.partition('::')
    home = Path(get_installed_path(MODULE2PACKAGE.get(package, package))) / '.mim' / 'configs'
    known = [path.relative_to(home).as_posix() for path in home.glob('*/*.py')]
    near = get_close_matches(wanted, known, 3, cutoff=0.5)
    return f'; did you mean {", ".join(f"{package}::{name}" for name in near)}?' if near else ''


def build_model(config: Config) -> Any:
    """Build the model of a config, without weights."""
    model = ConfigDict(config.model)
    if 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return MODELS.build(model)


def distils(config: Config) -> bool:
    """Whether a config is a recipe: its model is a distilled student."""
    kind = (config.get('model') or {}).get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == 'Distilled'


def dicts_in(value: Any) -> Iterator[Any]:
    """All dicts of a nested value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts_in(item)
