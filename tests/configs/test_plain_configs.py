"""Configs of students and teachers without distillation, and teachers that they have trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner

from kd_dense.mm.files.checkpoint import read_checkpoint
from tests.configs.models import build
from tests.configs.test_recipes import Listener
from tests.miniature import ROOT, configs, make_data, miniature, recipes

PLAIN = [
    path
    for folder in ('ld', 'intrakd', 'erd', 'predictions')
    for path in configs(f'{folder}/*.py')
    if '_from_' not in path.stem and 'model' in Config.fromfile(path)
]
TAUGHT_BY_OURS = [r for r in recipes() if 'config' in (Config.fromfile(r).model.teacher or {})]


def stem(path):
    return path.stem


@pytest.mark.parametrize('path', PLAIN, ids=stem)
def test_builds_and_is_what_its_name_says(path):
    config = Config.fromfile(path)
    build(config.model, config.default_scope)
    backbone = config.model.backbone
    if 'depth' in backbone:
        assert f'r{backbone.depth}_' in path.stem
        weights = config.model.get('pretrained') or backbone.init_cfg.checkpoint
        assert f'/resnet{backbone.depth}' in weights
    assert f'({path.name})' in (path.parent / 'README.md').read_text()


def test_every_teacher_of_ours_is_among_them():
    assert len(TAUGHT_BY_OURS) >= 5
    for recipe in TAUGHT_BY_OURS:
        teacher = Config.fromfile(recipe).model.teacher
        trained = get_config(teacher.config)
        epochs = trained.train_cfg.max_epochs
        assert Path(trained.filename).resolve() in PLAIN
        assert Path(teacher.checkpoint).name == f'epoch_{epochs}.pth'
        assert trained.param_scheduler[-1].end == epochs


def test_what_it_has_trained_teaches(tmp_path):
    recipe = ROOT / 'configs' / 'ld' / 'ld-self_gfl-r18_from_gfl-r18_1x_coco.py'
    data = make_data(tmp_path / 'data')
    source = Config.fromfile(recipe).model.teacher.config
    run(miniature(get_config(source), data, tmp_path / 'teacher'))

    checkpoint = str(tmp_path / 'teacher' / 'epoch_1.pth')
    config = miniature(Config.fromfile(recipe), data, tmp_path / recipe.stem)
    config.model.teacher = dict(config=source, checkpoint=checkpoint)
    model, losses = run(config)

    taught, expected = model.kd_plan.teacher.model.state_dict(), read_checkpoint(checkpoint)
    assert taught.keys() == expected.keys()
    assert all(torch.equal(taught[name], expected[name]) for name in expected)
    for step in losses:
        assert all(math.isfinite(value) for value in step.values()), step
        assert step['loss_kd_ld.main'] > 0


def run(config):
    """Train without evaluation; return the model, and the losses of both iterations."""
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        config.pop(key)
    runner, listener = Runner.from_cfg(config), Listener()
    runner.register_hook(listener)
    runner.train()
    assert len(listener.losses) == 2
    return runner.model, listener.losses
