"""Models of configs without their weights, each built once."""

from __future__ import annotations

import re
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from kd_dense.mm.configs import read_config

_built: dict[str, nn.Module] = {}


def both(recipe: Config) -> tuple[nn.Module, nn.Module]:
    """The student and the teacher of a recipe; without one, the student itself."""
    named = recipe.model.teacher
    if named is None:
        student = build(recipe.model.student, recipe.default_scope)
        return student, student
    teacher = read_config(named if isinstance(named, str) else named.config)
    scope = recipe.default_scope
    return build(recipe.model.student, scope), build(teacher.model, scope)


def build(model: Any, scope: str) -> nn.Module:
    """The model of a config on the ``meta`` device; where it needs values, on the CPU."""
    key = f'{scope} {model}'
    if key not in _built:
        needs_values = re.search('Swin|MixVision', str(model.get('backbone')))
        with (
            DefaultScope.overwrite_default_scope(scope),
            torch.device('cpu' if needs_values else 'meta'),
        ):
            _built[key] = MODELS.build(model)
    return _built[key]
