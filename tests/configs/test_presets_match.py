"""A recipe in a method's published setting says what the preset says."""

from __future__ import annotations

import inspect
import re

import pytest
from mmengine.config import Config

import kd_dense.losses
from kd_dense.mm.presets.choose import METHODS, choose_preset
from tests.configs.models import both
from tests.miniature import recipes

# A recipe whose name has a variant, as `ld-main`, is another setting; so is the first of these.
# SegFormer cannot be built without values.
OTHERS = re.compile('intrakd_erfnet_|[a-z-]+_segformer-')
NAMES = {name.replace('_', '-'): name for name in METHODS}
SAME = [r for r in recipes() if r.stem.split('_')[0] in NAMES and not OTHERS.match(r.stem)]


def settings(terms):
    found = []
    for term in terms.values():
        loss = {key: value for key, value in term['loss'].items() if key != '_scope_'}
        takes = inspect.signature(getattr(kd_dense.losses, loss['type'])).parameters
        others = {
            k: v for k, v in term.items() if k in ('adapter', 'schedule', 'cross_at', 'share')
        }
        found.append((term['tap'], {k: p.default for k, p in takes.items()} | loss, others))
    return sorted(found, key=str)


@pytest.mark.parametrize('recipe', SAME, ids=lambda path: path.stem)
def test_recipe_equals_preset(recipe):
    config = Config.fromfile(recipe)
    preset = choose_preset(NAMES[recipe.stem.partition('_')[0]], *both(config))
    assert settings(preset.terms) == settings(config.model.to_dict()['terms'])
    assert preset.inherit == tuple(config.model.get('inherit', ()))
