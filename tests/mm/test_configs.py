"""Configs by name and path, and what is a recipe."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, MODELS

from kd_dense.mm import CriticHook, SafeCheckpointHook
from kd_dense.mm.configs import (
    NotFoundError,
    RequestError,
    alone,
    dicts_in,
    distils,
    framework,
    has_hook,
    read_config,
    type_name,
    type_of,
)
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


class MyCriticHook(CriticHook):
    """As a user may derive one."""


class TestTypes:
    """However a config spells them."""

    @pytest.mark.parametrize(
        'kind',
        ['CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook',
         CheckpointHook],
    )  # fmt: skip
    def test_one_of_four(self, kind):
        part = dict(type=kind)
        assert type_name(part) == 'CheckpointHook'
        assert type_of(part, HOOKS) is CheckpointHook

    def test_a_scope_of_the_config_and_of_the_part(self):
        plain = dict(type='ResNetV1c')
        assert type_of(plain, MODELS, 'mmengine') is None  # whatever the current one is
        found = type_of(plain, MODELS, 'mmseg')
        assert found.__module__.startswith('mmseg.')
        assert type_of({**plain, '_scope_': 'mmseg'}, MODELS, 'mmdet') is found
        assert type_of(dict(type='kd_dense.Distilled'), MODELS) is Distilled

    def test_what_is_none(self):
        assert (type_name({}), type_name(None), type_name(dict(type=3))) == ('', '', '')
        assert type_of(dict(type='Nothing'), HOOKS) is None
        assert type_of(CheckpointHook(1), HOOKS) is CheckpointHook

    @pytest.mark.parametrize(
        ('kind', 'expected'),
        [('kd_dense.CriticHook', True), ('kd_dense.mm.CriticHook', True), (CriticHook, True),
         ('kd_dense.mm.hooks.critic.CriticHook', True), (MyCriticHook, True),
         (f'{__name__}.MyCriticHook', True), ('kd_dense.RandomStateHook', False)],
    )  # fmt: skip
    def test_a_hook(self, kind, expected):
        config = Config()
        config.custom_hooks = [dict(type='EMAHook'), dict(type=kind)]
        assert has_hook(config, CriticHook) == expected
        config.custom_hooks, config.default_hooks = None, dict(timer=None, mine=dict(type=kind))
        assert has_hook(config, CriticHook) == expected

    def test_no_hook_at_all(self):
        assert not has_hook(Config(), CriticHook)

    def test_the_framework(self):
        assert framework(read_config(f'kd_dense::{RECIPE}')) == 'mmdet'
        segmenter = dict(type='mmseg.EncoderDecoder')
        assert framework(Config(dict(model=segmenter))) == 'mmseg'
        student = dict(type='mmseg.models.EncoderDecoder')
        pure = dict(type='kd_dense.Distilled', student=student)
        assert framework(Config(dict(model=pure, default_scope=None))) == 'mmseg'
        other = dict(model=dict(type='ImgDataPreprocessor'))
        assert framework(Config(other)) == ''
        assert framework(Config({**other, 'default_scope': 'mmseg'})) == 'mmseg'


class TestPureStyle:
    def test_classes_get_their_names(self, tmp_path):
        (tmp_path / 'pure.py').write_text(
            'from mmcv.transforms import LoadImageFromFile, Resize\n'
            'from mmdet.models import FPN, RetinaNet, L1Loss\n'
            'from mmengine.dataset import pseudo_collate\n'
            'from mmengine.model.weight_init import PretrainedInit\n'
            'from no_such_package import Unused\n'
            'from torch.nn import BatchNorm2d\n\n'
            'from kd_dense.losses import CWDLoss\n'
            'from kd_dense.mm import Distilled\n\n'
            'model = dict(type=Distilled, student=dict(\n'
            '    type=RetinaNet, neck=dict(type=FPN, norm_cfg=dict(type=BatchNorm2d)),\n'
            '    loss=dict(type=L1Loss), init_cfg=dict(type=PretrainedInit)),\n'
            '    terms=dict(cwd=dict(loss=dict(type=CWDLoss))))\n'
            'steps = [(dict(type=LoadImageFromFile), dict(type=Resize))]\n'
            'collate_fn = dict(type=pseudo_collate)\n'
        )
        named = tmp_path / 'scope.py'
        named.write_text((tmp_path / 'pure.py').read_text() + "default_scope = 'mmdet'\n")
        config = read_config(tmp_path / 'pure.py', {'model.student.neck.out_channels': 3})
        student = config.model.student
        assert config.model.type == 'kd_dense.Distilled'
        assert config.model.terms.cwd.loss.type == 'kd_dense.CWDLoss'
        assert (student.type, student.loss.type) == ('mmdet.RetinaNet', 'mmdet.L1Loss')
        assert config.steps[0][0].type == 'LoadImageFromFile'
        assert config.collate_fn.type == 'pseudo_collate'
        steps = [step.type for step in read_config(named).steps[0]]
        assert steps == ['mmengine.LoadImageFromFile', 'mmengine.Resize']  # not mmdet's own
        # a config knows it by another name
        assert student.neck.norm_cfg.type.__name__ == 'BatchNorm2d'
        assert student.init_cfg.type.__name__ == 'PretrainedInit'
        assert student.neck.out_channels == 3
        again = Config.fromstring(config.pretty_text, '.py')
        assert type_of(again.model.student.loss, MODELS) is type_of(student.loss, MODELS)


class TestAlone:
    def test_is_the_student_and_nothing_else(self):
        recipe = read_config(ROOT / 'configs' / 'quickstart' / 'seg_skd.py')
        recipe.custom_hooks = [
            dict(type='EMAHook'),
            dict(type='kd_dense.RandomStateHook'),
            dict(type='kd_dense.mm.PictureHook'),
            dict(type=CriticHook),
        ]
        recipe.default_hooks.checkpoint.type = 'kd_dense.SafeCheckpointHook'
        student = alone(recipe)
        assert student.model == recipe.model.student
        assert student.custom_hooks == [dict(type='EMAHook')]
        assert student.default_hooks.checkpoint.type == 'CheckpointHook'
        assert student.default_hooks.checkpoint.interval == 600
        assert len(recipe.custom_hooks) == 4  # it is left as it was
        assert type_of(recipe.default_hooks.checkpoint, HOOKS) is SafeCheckpointHook

    def test_of_another_config(self):
        config = read_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        assert alone(config) is config


def test_dicts_in_a_nested_value():
    inner, outer = dict(a=1), dict(b=[2, ()])
    outer['c'] = (inner, 3)
    assert [*dicts_in([outer, 'x'])] == [outer, inner]
