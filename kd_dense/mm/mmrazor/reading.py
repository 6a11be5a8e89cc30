"""Read a config of mmrazor without mmrazor: its settings, its bases, and the configs it names."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import get_installed_path

from kd_dense.mm.configs import NotFoundError, RequestError, near_configs, type_name

__all__ = ['ALGORITHMS', 'Source', 'mended', 'merged', 'plain', 'read_source', 'scoped', 'words']

ALGORITHMS = ('SingleTeacherDistill', 'FpnTeacherDistill')
# Other algorithms of mmrazor, and why they have no recipe.
OTHERS = {
    'DAFLDataFreeDistillation': 'distils without data, from images that a generator makes',
    'DataFreeDistillation': 'distils without data, from images that a generator makes',
    'DFNDDistill': 'learns from images that have no labels',
    'OverhaulFeatureDistillation': 'is overhaul feature distillation (OFD), for classifiers',
    'SelfDistill': 'distils a network into its own lower layers',
}
CLASSIFIERS = ('mmcls', 'mmpretrain')
# What was renamed in the names of configs from 2.x to 3.x, beside _ and -.
RENAMED = {'mstrain': 'ms', 'fp16': 'amp'}


class Source(NamedTuple):
    """A config of mmrazor.

    Attributes:
        config: As mmengine merges it with its bases.
        bases: Those of its bases, and of theirs, that are not mmrazor's own: names or paths.
        path: Where it lies.
    """

    config: Config
    bases: list[str]
    path: Path


def read_source(path: str) -> Source:
    """Read a config of mmrazor 1.x.

    Args:
        path: Its path. Bases are read from where it says, mmrazor's own from beside it.

    Raises:
        NotFoundError: If it, or one of its bases, does not exist.
        RequestError: If it distils nothing that this package can distil: the message says why.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise NotFoundError(
            f'the config {path} does not exist (looked in {Path.cwd()}): give the path of one in '
            'a copy of mmrazor, or of your own'
        )
    if file.suffix == '.py':
        _check_packages(file, [])
    if file.suffix != '.py' or Config._is_lazy_import(str(file)):
        raise RequestError(
            f'expected a config of mmrazor 1.x as a .py with _base_ and model, got {path}'
        )
    config = merged([str(file)])
    _check_algorithm(config, path)
    return Source(config, _foreign_bases(file), file)


def _check_packages(file: Path, above: Sequence[Path]) -> None:
    """Make sure that all bases are there; mmengine would go and install what is not."""
    if file.resolve() in above:
        raise RequestError(f'{file} is a base of itself, so that nothing can be read from it')
    for base in _bases_of(file):
        package, is_name, _ = base.partition('::')
        if is_name:
            _check_package(package, f'{file} builds on {base}')
            continue
        path = file.parent / base
        if not path.is_file():
            raise NotFoundError(f'{file} builds on {base}, which does not exist')
        _check_packages(path, [*above, file.resolve()])


def _check_package(package: str, why: str) -> None:
    if package in CLASSIFIERS:
        raise RequestError(
            f'{why}: it trains a classifier, and kd_dense is for dense prediction alone: '
            'detectors and segmenters'
        )
    if find_spec(package) is None:
        raise RequestError(
            f'{why}, and {package} is not installed'
            + (': give the bases as paths' if package == 'mmrazor' else '')
        )


def _bases_of(file: Path) -> list[str]:
    """What a file has as ``_base_``."""
    try:
        tree = ast.parse(file.read_text(encoding='utf-8'))
    except SyntaxError as error:
        raise RequestError(f'{file} is no Python: {error.msg} in line {error.lineno}') from error
    for line in tree.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == '_base_':
            bases = ast.literal_eval(line.value)
            return [bases] if isinstance(bases, str) else list(bases)
    return []


def merged(bases: Sequence[str]) -> Config:
    """What mmengine makes of bases, names or paths, without importing what they ask for.

    Raises:
        RequestError: If it cannot be read.
    """
    paths = [base if '::' in base else str(Path(base).absolute()) for base in bases]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'config.py'
        file.write_text(f'_base_ = {paths!r}\n')
        try:
            return Config.fromfile(str(file), import_custom_modules=False)
        except Exception as error:  # whatever the code in a config raises
            raise RequestError(
                f'{", ".join(bases)} cannot be read: {type(error).__name__}: {error}'
            ) from error


def _is_mmrazors(config: Config) -> bool:
    model = config.get('model') or {}
    return 'distiller' in model or 'algorithm' in config or model.get('_scope_') == 'mmrazor'


def _foreign_bases(file: Path) -> list[str]:
    found = []
    for base in _bases_of(file):
        one = base if '::' in base else str(file.parent / base)
        if '::' not in base and _is_mmrazors(merged([one])):
            found += _foreign_bases(Path(one))
        else:
            found.append(one)
    return list(dict.fromkeys(found))


def _check_algorithm(config: Config, path: str) -> None:
    if 'algorithm' in config:
        raise RequestError(
            f'{path} is a config of mmrazor 0.x (algorithm=...), and configs of 1.x are read: a '
            'term of a recipe names the same modules and losses, see docs/from-mmrazor.md'
        )
    kind = type_name(config.get('model'))
    if kind in ALGORITHMS:
        return
    if kind in OTHERS:
        raise RequestError(f'{path}: {kind} {OTHERS[kind]}, which kd_dense has nothing for')
    raise RequestError(
        f'{path}: its model is a {kind or None}, and distillation with {" or ".join(ALGORITHMS)} '
        'is carried over; search, pruning and quantization of mmrazor have no counterpart here'
    )


def mended(name: str) -> str:
    """The name of a config that exists, for one that may be of an older version of its package.

    Args:
        name: As ``'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'``.

    Raises:
        NotFoundError: If none, or more than one, is called so but for the spelling.
        RequestError: If its package is not installed, or trains classifiers.

    Examples:
        >>> mended('mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py')
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    """
    package, _, file = name.partition('::')
    _check_package(package, f'the config names {name}')
    home = Path(get_installed_path(MODULE2PACKAGE.get(package, package))) / '.mim' / 'configs'
    if (home / file).is_file():
        return name
    alike = [p for p in home.glob('*/*.py') if words(p.name) == words(Path(file).name)]
    if len(alike) != 1:
        raise NotFoundError(f'the config {name} does not exist{near_configs(name)}')
    return f'{package}::{alike[0].relative_to(home).as_posix()}'


def words(name: str) -> list[str]:
    """What a name is made of, whatever stands between, without the images of a batch.

    Examples:
        >>> words('pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py')
        ['512x1024', '80k', 'cityscapes', 'd8', 'pspnet', 'r18']
    """
    found = re.split(r'[-_]', name.removesuffix('.py').lower())
    return sorted(RENAMED.get(w, w) for w in found if not re.fullmatch(r'\d+xb\d+', w))


def plain(value: Any) -> Any:
    """A nested value without the scopes that mmengine writes into bases, to compare it."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k != '_scope_'}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


def scoped(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model as [`plain`][] has it, but with the scope of the whole, to build it."""
    scope = {key: value for key, value in model.items() if key == '_scope_'}
    return {**scope, **plain(model)}
