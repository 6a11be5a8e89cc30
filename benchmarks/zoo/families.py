"""Families of models, and which of their configs are student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.utils import get_installed_path
from torch.overrides import TorchFunctionMode

import kd_dense.mm  # noqa: F401  (before any config is read)
from benchmarks.zoo.models import build, prepared
from benchmarks.zoo.records import NO_MODEL, described
from kd_dense.mm.configs import dicts_in

ROOT = Path(__file__).resolve().parents[2]
OURS = ('atss-distribution', 'fcos-distribution', 'retinanet-distribution')  # in configs/ld
# settings that a teacher has in common with its student
SHARED = ('num_classes', 'num_things_classes', 'num_stuff_classes', 'img_size', 'input_size',
          'reg_max')  # fmt: skip
STUDENTS = 3  # models of a family that are tried at most until one trains


def families() -> dict[str, list[Path]]:
    """The config files of each family, by its name: ``'mmdet/retinanet'``."""
    found = {}
    for package in ('mmdet', 'mmseg'):
        home = Path(get_installed_path(package)) / '.mim' / 'configs'
        for folder in sorted(home.iterdir()):
            files = sorted(folder.glob('*.py'))
            if files and not folder.name.startswith('_'):
                found[f'{package}/{folder.name}'] = files
    for name in OURS:
        found[f'kd_dense/{name}'] = sorted((ROOT / 'configs' / 'ld').glob(f'{name}_*.py'))
    return found


@cache
def read(path: Path) -> Config | None:
    """Read a config; None if nothing is trained with it, or it needs what is not installed."""
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except Exception:  # a config may run any code
        return None
    trains = 'train_dataloader' in config or 'train_pipeline' in config
    return config if trains and isinstance(config.get('model'), Mapping) else None


def choose(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Choose the smallest models of a family that differ, and for each its teacher.

    Those with a feature pyramid come first: more methods apply to them.

    Raises:
        ValueError: If no file has a model that can be built.
    """
    sizes, problems = {}, []
    for path in files:
        config = read(path)
        if config is None:
            continue
        try:
            sizes[path] = parameters(config)
        except Exception as error:  # whatever a model raises that cannot be built
            problems.append(described(error))
    if not sizes:
        raise ValueError(problems[0] if problems else NO_MODEL)
    students: list[Path] = []
    order = {path: (not has_pyramid(read(path)), sizes[path], len(path.name)) for path in sizes}
    for path in sorted(sizes, key=lambda path: (order[path], path)):
        if all(model_of(path) != model_of(other) for other in students):
            students.append(path)
    pairs = []
    for student in students[:STUDENTS]:
        alike = [path for path in sizes if kind(read(path)) == kind(read(student))]
        teacher = max(alike, key=lambda path: (sizes[path], -len(path.name), path))
        pairs.append((student, teacher))
    return pairs


def has_pyramid(config: Any) -> bool:
    """Whether this is a detector with a neck whose maps are all of one width."""
    if 'decode_head' in config.model:
        return False
    necks = [one['neck'] for one in dicts_in(config.model) if one.get('neck')]
    last = [neck[-1] if isinstance(neck, Sequence) else neck for neck in necks]
    return any(isinstance(neck.get('out_channels'), int) for neck in last)


def model_of(path: Path) -> Any:
    config = read(path)
    return config and config.model


def kind(config: Any) -> list[str]:
    """What student and teacher have in common: classes of model and parts, labels, strides."""
    model = config.model
    names = [name for name in model if name == 'neck' or name.endswith('_head')]
    parts = [f'{n}: {model[n].type}' for n in names if isinstance(model[n], Mapping)]
    values = {f'{k}: {v}' for one in dicts_in(model) for k, v in one.items() if k in SHARED}
    generators = [one for one in dicts_in(model) if 'Generator' in str(one.get('type'))]
    values |= {f'strides: {one["strides"]}' for one in generators if 'strides' in one}
    return [str(model.type), *sorted(parts), *sorted(values)]


class NoMemory(TorchFunctionMode):
    """Parameters without memory, so that a model is built in no time."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs['device'] = 'meta'
        return function(*args, **kwargs)


def parameters(config: Config) -> int:
    """How many parameters a model has."""
    try:
        with NoMemory():
            model = build(prepared(config))
    except (RuntimeError, ValueError):  # it computes with its parameters when it is built
        model = build(prepared(config))
    return sum(parameter.numel() for parameter in model.parameters())
