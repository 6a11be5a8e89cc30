"""Configs: read by name or path, and built as they say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper as amp
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS, DefaultScope, Registry
from mmengine.utils import get_installed_path

__all__ = [
    'NotFoundError',
    'RequestError',
    'alone',
    'build_model',
    'check_mixed_precision',
    'dicts_in',
    'distils',
    'framework',
    'has_hook',
    'is_pure',
    'near_configs',
    'read_config',
    'type_name',
    'type_of',
]

ROOTS = [one for one in vars(mmengine_registry).values() if isinstance(one, Registry)]
# Packages whose models are named as configs are, and the model that stands for them.
ELSEWHERE = {'timm': 'kd_dense.TimmModel', 'transformers': 'kd_dense.TransformersModel'}
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
            ``'kd_dense::FOLDER/FILE.py'``; and ``'timm::NAME'``, ``'transformers::NAME'`` are
            models of these packages.
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
    if is_pure(config):
        _name_types(config)
    if options:
        config.merge_from_dict(dict(options))
    return config


def _read_by_name(source: str, pretrained: bool) -> Config:
    package, _, name = source.partition('::')
    if package in ELSEWHERE and name:
        # whether there are such weights is found when they are wanted
        return Config(dict(model=dict(type=ELSEWHERE[package], model=name), model_path=source))
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


def _name_types(config: Config) -> None:
    """Put registered names where a config in the pure Python style has classes.

    mmengine writes a class as the path to it, by which it does not always find it again:
    ``mmdet.models.losses.smooth_l1_loss`` is a module and a function.
    """
    parts = [part for part in dicts_in(config._cfg_dict) if callable(part.get('type'))]
    bare = not config.get('default_scope')  # or a framework may know another thing by the name
    names = {kind: name for root in ROOTS for kind, name in _registered(root, bare)}
    for part in parts:
        if part['type'] in names:
            part['type'] = names[part['type']]


def _registered(root: Registry, bare: bool) -> Iterator[tuple[Any, str]]:
    """What a registry and its children know by its own name, and that name with its scope.

    Where ``bare``, names of the root that no child has are without.
    """
    family = [root]
    for one in family:
        family += one.children.values()
    counts = Counter(name for one in family for name in one.module_dict)
    for one in family:
        for name, kind in one.module_dict.items():
            if _name_of(kind) == name:
                plain = bare and one is root and counts[name] == 1
                yield kind, name if plain else f'{one.scope}.{name}'


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


def type_name(part: Mapping[str, Any] | None) -> str:
    """The last part of a type's name, however a config spells it.

    ``'X'``, ``'scope.X'``, ``'package.module.X'`` and, in mmengine's pure Python style, ``X``
    itself come to the same.
    """
    kind = (part or {}).get('type')
    return (kind if isinstance(kind, str) else _name_of(kind)).rpartition('.')[2]


def _name_of(kind: Any) -> str:
    return getattr(kind, '__name__', '')


def type_of(part: Any, registry: Registry, scope: str | None = None) -> Any:
    """What a part of a config is built by: a class or function, however a config spells it.

    Args:
        part: The part, or an object that was built already.
        registry: Where names are looked up.
        scope: ``default_scope`` of the config.

    Returns:
        The class or function; None if there is none of the name.
    """
    if not isinstance(part, Mapping):
        return type(part)
    kind = part.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(part.get('_scope_') or scope) as there:
        return there.get(kind)


def check_mixed_precision(optim_wrapper: Any, scope: str | None = None) -> None:
    """Refuse mixed precision where mmengine would assert that there is a GPU.

    Args:
        optim_wrapper: The part of a config.
        scope: ``default_scope`` of the config.

    Raises:
        RequestError: If it is mixed precision, and there is no device for it.
    """
    kind = type_of(optim_wrapper, OPTIM_WRAPPERS, scope)
    if not (isinstance(kind, type) and issubclass(kind, AmpOptimWrapper)):
        return
    devices = ('cuda', 'npu', 'mlu', 'musa')
    if not any(getattr(amp, f'is_{device}_available')() for device in devices):
        raise RequestError(
            f"mixed precision ({kind.__name__}) needs a GPU: mmengine's scales gradients on CUDA, "
            'NPU, MLU or MUSA alone, in bfloat16 too, and there is none here. Train in float32: '
            "leave out --amp, or where the config has it take optim_wrapper.type='OptimWrapper' "
            'without loss_scale and dtype. The teacher alone can compute in half precision: '
            "model.teacher.precision='bf16'"
        )


def has_hook(config: Config, kind: type) -> bool:
    """Whether a config names a hook of a class, or of one derived from it."""
    scope = config.get('default_scope')
    named = [*(config.get('custom_hooks') or []), *(config.get('default_hooks') or {}).values()]
    found = (type_of(hook, HOOKS, scope) for hook in named if hook)
    return any(isinstance(one, type) and issubclass(one, kind) for one in found)


def distils(config: Config) -> bool:
    """Whether a config is a recipe: its model is a distilled student."""
    return type_name(config.get('model')) == 'Distilled'


def is_pure(config: Config) -> bool:
    """Whether a config was read from a file in mmengine's pure Python style."""
    file: str | None = config.filename
    return file is not None and bool(Config._is_lazy_import(file))


def framework(config: Config) -> str:
    """The package that a model comes from or builds on: 'mmdet', 'mmseg', or the default scope."""
    model = config.model.student if distils(config) else config.model
    kind = type_of(model, MODELS, config.get('default_scope'))
    packages = [cls.__module__.partition('.')[0] for cls in getattr(kind, '__mro__', ())]
    found = (name for name in packages if name in ('mmdet', 'mmseg'))
    return next(found, config.get('default_scope') or '')


def alone(config: Config) -> Config:
    """The config of the student of a recipe, without all that distils.

    Args:
        config: A recipe; another config comes back as it is.
    """
    if not distils(config):
        return config
    config = deepcopy(config)
    config.model = config.model.student
    hooks = config.get('custom_hooks') or []
    config.custom_hooks = [hook for hook in hooks if not _is_ours(hook)]
    checkpoint = (config.get('default_hooks') or {}).get('checkpoint') or {}
    if type_name(checkpoint) == 'SafeCheckpointHook':
        checkpoint['type'] = 'CheckpointHook'
    return config


def _is_ours(hook: Any) -> bool:
    # By its name: the config may come out of a checkpoint, which has no say in what is imported.
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
    return (kind if isinstance(kind, str) else str(kind.__module__)).startswith('kd_dense.')


def dicts_in(value: Any) -> Iterator[Any]:
    """All dicts of a nested value."""
    if isinstance(value, dict):
        yield value
        value = list(dict.values(value))  # a ConfigDict's own imports what a class is named by
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts_in(item)
