"""Every recipe: short, named as agreed, buildable, and trained for a moment on real layouts."""

from __future__ import annotations

import ast
import copy
import math
import re
import socket
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.runner import Runner

import kd_dense.mm  # noqa: F401  (before any config is read)
from kd_dense.mm.presets import choose
from kd_dense.mm.presets.choose import METHODS
from kd_dense.mm.stack.torchvision import import_timm
from kd_dense.taps import Taps
from tests.configs.models import both
from tests.miniature import COCO_SIZE, ROOT, make_data, miniature, recipes

RECIPES = list(recipes())
# One of each framework is what the lane of the other stack trains.
LANE = (
    'cwd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024',
    'cwd_retinanet-r50_from_retinanet-r101_1x_coco',
)


@cache
def _read(recipe: Path) -> Config:
    return Config.fromfile(recipe)


def read(recipe: Path) -> Config:
    """The config of a recipe, which is read once and may be changed."""
    return copy.deepcopy(_read(recipe))


def kind(recipe: Path) -> tuple[str, str]:
    """The method and the data."""
    names = '|'.join(name.replace('_', '-') for name in sorted(METHODS, key=len, reverse=True))
    name = re.match(names, recipe.stem)
    assert name is not None, recipe.stem
    return name[0], recipe.stem.rpartition('_')[2].partition('-')[0]


def cost(recipe: Path) -> tuple[Any, ...]:
    """What sorts the lane first, then those without a variant, then the small ones."""
    name = recipe.stem
    plain = name.partition('_')[0] == kind(recipe)[0]
    large = bool(re.search('x101|dcn|segformer|swin|deeplabv3-r18', name))
    return name not in LANE, not plain, large, '-r18_' not in name, name


SEGMENTED = ('cityscapes', 'apolloscape')
# The cheapest recipe of each family trains on each framework, on detectors of the core's families
# alone; the others train with --long.
CORE = ('cwd', 'skd', 'fgd', 'ld', 'intrakd')
FIRST = {
    (r.parent.name, kind(r)[1] in SEGMENTED): r
    for r in sorted(RECIPES, key=cost, reverse=True)
    if r.parent.name in CORE
    or (kind(r)[1] in SEGMENTED and '_from_dinov' not in r.stem and r.parent.name != 'queries')
}.values()
every_recipe = pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise AssertionError(f'a test wants to connect to {args[-1]}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data'))


class Listener(Hook):
    """Keeps what a run says."""

    def __init__(self):
        self.losses: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value) for name, value in outputs.items()})

    def after_val_epoch(self, runner, metrics=None):
        self.metrics = {name: float(value) for name, value in metrics.items()}


def test_there_are_recipes():
    assert len(RECIPES) >= 6
    scopes = {read(r).default_scope for r in RECIPES}
    assert scopes - {'mmrotate'} == {'mmdet', 'mmseg'}
    assert set(LANE) <= {recipe.stem for recipe in RECIPES}


@every_recipe
def test_is_named_as_agreed(recipe):
    file = choose._files()[recipe.parent.name]
    names = '|'.join(name.replace('_', '-') for name in file.METHODS)
    word = '[a-z0-9]+(-[a-z0-9]+)*'
    pattern = rf'({names})(-[a-z0-9]+)*_{word}_from_{word}_\d+(x|k|e)_{word}'
    assert re.fullmatch(pattern, recipe.stem), f'{recipe.stem} does not match {pattern}'


@every_recipe
def test_is_short_and_says_where_its_settings_come_from(recipe):
    text = recipe.read_text()
    tree = ast.parse(text)
    first, *rest = tree.body
    assert 'Source: ' in ast.get_docstring(tree)
    own = [line for line in text.splitlines()[first.end_lineno :] if line.split('#')[0].strip()]
    assert rest
    assert len(own) <= 15


def bases(recipe: Path) -> list[str]:
    [found] = [
        ast.literal_eval(node.value)
        for node in ast.parse(recipe.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_'
    ]
    return found


@every_recipe
def test_begins_with_the_base_that_imports_us(recipe):
    # Whether it comes first shows only where nothing else has imported kd_dense before.
    assert bases(recipe)[0] == '../_base_/kd_dense.py'


@every_recipe
def test_changes_nothing_but_the_model(recipe):
    base = bases(recipe)[-1]
    stock = get_config(base) if '::' in base else Config.fromfile(recipe.parent / base)
    stock, config = unscoped(stock.to_dict()), unscoped(read(recipe).to_dict())
    model, plain = config.pop('model'), stock.pop('model')
    if 'student=_base_.model,' in recipe.read_text():
        assert model['student'] == plain
    losses = {term['loss']['type'] for term in model['terms'].values()}
    if 'HolisticLoss' in losses:
        before = stock.get('custom_hooks', [])
        assert config['custom_hooks'] == [*before, dict(type='kd_dense.CriticHook')]
        for either in (config, stock):
            either.pop('custom_hooks', None)
    assert config == stock


def unscoped(value: Any) -> Any:
    """Leave out what mmengine notes about the package that a base comes from."""
    if isinstance(value, dict):
        return {k: unscoped(v) for k, v in value.items() if k != '_scope_'}
    return [unscoped(v) for v in value] if isinstance(value, (list, tuple)) else value


@every_recipe
def test_the_teacher_has_published_weights_or_says_how_to_train_it(recipe):
    teacher = read(recipe).model.teacher
    if teacher is None:
        return
    if isinstance(teacher, str) and teacher.startswith('timm::'):
        get = import_timm().models.get_pretrained_cfg
        assert get(teacher.removeprefix('timm::')).hf_hub_id.startswith('timm/')
        return
    if isinstance(teacher, str):
        assert re.fullmatch(r'https://\S+\.pth', get_config(teacher, pretrained=True).model_path)
        return
    package, _, name = teacher.config.partition('::')
    config = Path('configs') / name
    assert package == 'kd_dense'
    assert (ROOT / config).is_file()
    assert Path(teacher.checkpoint).parent == Path('work_dirs') / config.stem
    assert f' {config}' in (recipe.parent / 'README.md').read_text()


@every_recipe
def test_the_readme_has_it(recipe):
    readme = (recipe.parent / 'README.md').read_text()
    [row] = [line for line in readme.splitlines() if f'({recipe.name})' in line]
    numbers = {float(n) for n in re.findall(r'\d+(?:\.\d+)?(?:e-?\d+)?', readme)}
    for term in read(recipe).model.terms.values():
        taps = [term.tap] if isinstance(term.tap, str) else [*term.tap.values()]
        for tap in taps:
            assert f'`{tap}`' in row
        for name, setting in term.loss.items():
            if isinstance(setting, float):
                assert setting in numbers, name


@pytest.mark.parametrize('recipe', [r for r in RECIPES if r not in FIRST], ids=lambda r: r.stem)
def test_its_taps_are_in_both_models(recipe):
    """Of those that train with --long alone."""
    config = read(recipe)
    for side, model in zip(('student', 'teacher'), both(config), strict=True):
        taps = [term.tap for term in config.model.terms.values()]
        names = [tap if isinstance(tap, str) else tap[side] for tap in taps]
        found = Taps(names)
        with found.on(model):
            for name in names:
                found.check_can_run(name)


def marks(recipe: Path) -> list[pytest.MarkDecorator]:
    if recipe.stem in LANE:
        return [pytest.mark.lane]
    return [] if recipe in FIRST else [pytest.mark.long]


@pytest.mark.parametrize('recipe', [pytest.param(r, marks=marks(r), id=r.stem) for r in RECIPES])
def test_trains_and_evaluates(recipe, data, tmp_path):
    # DINO chooses 900 places of its maps: it needs as many.
    shrink = 3 if 'dino-' in recipe.stem else None
    config = miniature(read(recipe), data, tmp_path / recipe.stem, shrink)
    config.default_hooks.checkpoint = None
    detects = config.default_scope != 'mmseg'
    mixes = detects and 'dataset' in config.train_dataloader.dataset
    deforms = 'RepPointsHead' in str(config.model) or 'dcn' in config.model.student.backbone
    for step in config.train_dataloader.dataset.get('pipeline', ()):
        if step.type == 'RandomResize' and 'dcn' in recipe.stem:  # no map may be below 3x3
            step.scale = [COCO_SIZE, COCO_SIZE]
    if mixes or deforms:  # untrained, they yield huge maps: no step would be survived
        config.optim_wrapper.optimizer.lr = 0.0
    if detects and not mixes:  # last comes a batch without ground truth
        config.train_dataloader.dataset.filter_cfg = None
        config.train_dataloader.sampler.shuffle = False
    for term in config.model.terms.values():
        if 'start' in term.get('schedule', {}):
            term.schedule.start = 0.5  # of two steps
    runner, listener = Runner.from_cfg(config), Listener()
    runner.register_hook(listener)

    runner.train()

    assert len(listener.losses) == 2 + detects
    for losses in listener.losses:
        assert all(math.isfinite(value) for value in losses.values()), losses
        assert losses['loss'] == pytest.approx(
            sum(value for name, value in losses.items() if 'loss_' in name), rel=1e-5
        )
    for term in config.model.terms:
        steps = listener.losses  # a student that starts as its teacher differs from the second on
        parts = [v for s in steps for name, v in s.items() if name.startswith(f'loss_kd_{term}')]
        assert sum(parts) != 0, term
    scores = {'coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'dota/mAP'} & listener.metrics.keys()
    assert scores
    assert all(0 <= listener.metrics[name] <= 100 for name in scores)
    if detects and not mixes and 'Mosaic' not in str(config.train_dataloader):
        dataset = runner.train_dataloader.dataset  # DOTA's has no order
        assert any(has_no_objects(dataset[index]) for index in range(4, -1, -1))


def has_no_objects(example: dict[str, Any]) -> bool:
    return len(example['data_samples'].gt_instances) == 0


def test_configs_name_no_place_on_a_machine():
    for path in (ROOT / 'configs').rglob('*'):
        if path.suffix in ('.py', '.md'):
            assert not re.search(r'(?<![\w.])/(home|tmp|work|root)/', path.read_text()), path
