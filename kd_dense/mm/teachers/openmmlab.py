"""Build a teacher from the config of an OpenMMLab model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from kd_dense.mm.configs import RequestError, distils, read_config, type_name
from kd_dense.mm.randomness import kept_random_state
from kd_dense.mm.teachers.foreign import config_of

__all__ = ['Built', 'build_teacher', 'config_of_teacher', 'read_teacher_config']

UNTRAINED_SEED = 0


class Built(NamedTuple):
    """A teacher that has not been given its weights yet.

    Attributes:
        model: The model.
        name: What messages call it.
        checkpoint: Where its weights are; None for an untrained one.
        strict: Whether all of them must fit.
    """

    model: nn.Module
    name: str
    checkpoint: str | None
    strict: bool


def build_teacher(fields: Mapping[str, Any]) -> Built:
    """Build a teacher, without its weights.

    Args:
        fields: ``config``, ``checkpoint`` and ``strict``, or ``type`` or ``module`` and what
            belongs to them, as [`kd_dense.mm.teachers.guest.Teacher`][] takes them.

    Raises:
        FileNotFoundError: If the config does not exist, or cannot be fetched.
        ValueError: If there is no checkpoint, a field has a bad value, or the model cannot be
            built.
    """
    fields = config_of(fields)
    source, checkpoint, strict = (
        fields.get(name, default)
        for name, default in (('config', None), ('checkpoint', None), ('strict', True))
    )
    paths = (str, os.PathLike)
    if not isinstance(source, (*paths, Mapping)) or not source:
        got = source if fields.keys() == {'config'} else dict(fields)
        raise ValueError(
            'expected a teacher as a config name, a path, dict(config=..., checkpoint=...) '
            f'or a model, got {got!r}'
        )
    if not isinstance(checkpoint, (*paths, NoneType)) or checkpoint == '':
        raise ValueError(
            f'teacher: checkpoint expects a path, an address or None, got {checkpoint!r}'
        )
    if not isinstance(strict, bool):
        raise ValueError(f'teacher: strict expects True or False, got {strict!r}')
    config = read_teacher_config(source)
    model = config.get('model')
    kind = model.get('type') if isinstance(model, Mapping) else None
    if kind is None:
        shown = list(source) if isinstance(source, Mapping) else source
        raise ValueError(
            'the config of the teacher has no model with a type: expected dict(type=...), or '
            f'dict(model=dict(type=...)), got {shown}'
        )
    name = str(source)
    if isinstance(source, Mapping):
        name = source.get('name') or type_name(model)
    checkpoint = fields.get('checkpoint', config.get('model_path'))
    if checkpoint is None and 'checkpoint' not in fields:
        raise ValueError(
            f'the teacher {name} comes without weights: say '
            "teacher=dict(config=..., checkpoint='PATH or URL'), or checkpoint=None for "
            'an untrained one'
        )
    if checkpoint is None:
        print_log(
            f'the teacher {name} is untrained (checkpoint=None): fine for a smoke '
            'run or a benchmark, useless for anything else',
            logger='current',
            level=30,
        )
    if distils(config):  # a student that has become a teacher
        model = model.student
    if 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    scope = config.get('default_scope')
    with DefaultScope.overwrite_default_scope(scope), kept_random_state():
        torch.manual_seed(UNTRAINED_SEED)  # the same untrained teacher on every rank
        try:
            with _unset_is_nan():
                built = ROOT_MODELS.build(model)
        except RequestError:  # which says what is wrong
            raise
        except Exception as error:  # whatever a model raises where its config is wrong
            raise ValueError(
                f'the teacher {name} cannot be built from its config: '
                f'{type(error).__name__}: {error}'
            ) from error
        if checkpoint is None:
            _set_the_rest(built)
    return Built(built, name, checkpoint, strict)


def config_of_teacher(spec: str | Mapping[str, Any]) -> Any:
    """The config of what a recipe says of a teacher; always with a ``model``."""
    if not isinstance(spec, Mapping):
        return read_teacher_config(spec)
    return read_teacher_config(config_of(spec)['config'])


def read_teacher_config(source: Any) -> Any:
    """Read a config by name (``mmdet::...``), path or value; always with a ``model``."""
    if isinstance(source, Mapping):
        config = source if 'model' in source else ConfigDict(model=source)
        return config if isinstance(config, (Config, ConfigDict)) else ConfigDict(config)
    return read_config(source, pretrained=True)


@contextmanager
def _unset_is_nan() -> Iterator[None]:
    """Let memory that nobody has written to hold NaN: mmdet leaves it to ``init_weights()``."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _set_the_rest(model: nn.Module) -> None:
    """Give random values to what has none."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_meta and parameter.isnan().any():
                parameter.normal_(std=0.02)
