"""A recipe in a method's published setting says what the preset says."""

from __future__ import annotations

import inspect

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope

import kd_dense.losses
from kd_dense.mm.presets.choose import choose_preset
from tests.miniature import recipes

# A recipe whose name has a variant, as `ld-main`, is another setting; these have their own too.
OTHERS = ('cwd_segformer-', 'intrakd_erfnet_')
SAME = [
    r
    for r in recipes()
    if r.stem.startswith(f'{r.parent.name}_') and not r.stem.startswith(OTHERS)
]


def build(config, scope):
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return ROOT_MODELS.build(config)


def settings(terms):
    found = []
    for term in terms.values():
        loss = {key: value for key, value in term['loss'].items() if key != '_scope_'}
        takes = inspect.signature(getattr(kd_dense.losses, loss['type'])).parameters
        found.append((term['tap'], {k: p.default for k, p in takes.items()} | loss))
    return sorted(found, key=str)


@pytest.mark.parametrize('recipe', SAME, ids=lambda path: path.stem)
def test_recipe_equals_preset(recipe):
    config = Config.fromfile(recipe)
    named = config.model.teacher
    teacher = get_config(named if isinstance(named, str) else named.config)
    preset = choose_preset(
        recipe.parent.name,
        build(config.model.student, config.default_scope),
        build(teacher.model, config.default_scope),
    )
    assert settings(preset.terms) == settings(config.model.to_dict()['terms'])
    assert preset.inherit == tuple(config.model.get('inherit', ()))
