"""Configs by name and path, and what is a recipe."""

import pytest
from mmengine.config import Config

from kd_dense.mm.configs import NotFoundError, RequestError, dicts_in, distils, read_config
from kd_dense.mm.distil.distilled import Distilled
from tests.miniature import ROOT

RECIPE = 'fgd/fgd_retinanet-r50_from_retinanet-x101-64x4d_2x_coco.py'


def test_a_name_and_a_path_read_the_same(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = {'train_cfg.max_epochs': 3}
    sources = f'kd_dense::{RECIPE}', ROOT / 'configs' / RECIPE
    named, found = (read_config(one, options) for one in sources)
    assert named.to_dict() == found.to_dict()
    assert named.train_cfg.max_epochs == 3


def test_published_weights_are_looked_up_where_there_are_any():
    stock = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    assert read_config(stock, pretrained=True).model_path.startswith('http')
    assert 'model_path' not in read_config(stock)
    assert 'model_path' not in read_config(f'kd_dense::{RECIPE}', pretrained=True)


@pytest.mark.parametrize(
    ('source', 'error', 'message'),
    [
        ('nowhere/x.py', NotFoundError, r'config nowhere/x\.py does not exist \(looked in'),
        ('nowhere::a/b.py', NotFoundError, 'nowhere is not installed'),
        (f'kd_dense::{RECIPE}x', NotFoundError, f'did you mean kd_dense::{RECIPE}'),
        ('kd_dense::fgd.py', RequestError, 'expected a name as'),
        (ROOT / 'LICENSE', RequestError, r'expected a config \(\.py\), got'),
    ],
)
def test_mistakes(source, error, message):
    with pytest.raises(error, match=message):
        read_config(source)


@pytest.mark.parametrize('kind', ['Distilled', 'kd_dense.Distilled', Distilled])
def test_a_recipe_is_known_however_its_type_is_spelt(kind):
    config = Config()
    config.model = dict(type=kind)
    assert distils(config)


@pytest.mark.parametrize('model', [dict(type='NotDistilled'), {}, None])
def test_others_are_no_recipe(model):
    assert not distils(Config(dict(model=model)))


def test_dicts_in_a_nested_value():
    inner, outer = dict(a=1), dict(b=[2, ()])
    outer['c'] = (inner, 3)
    assert [*dicts_in([outer, 'x'])] == [outer, inner]
