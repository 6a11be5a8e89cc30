"""The recipes of the quickstart: run by anybody's tools, from anywhere."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from mmengine.config import Config

import kd_dense.mm  # noqa: F401  (before any config is read)
from examples.quickstart.make_scenes import make_scenes
from tests.launch import framework, logged, losses, run
from tests.miniature import ROOT

CONFIGS = sorted((ROOT / 'configs' / 'quickstart').glob('*.py'))
# What quickstart.sh --from-scratch trains, and nobody else needs.
TO_BE_TRAINED = 'work_dirs/quickstart/checkpoints/backbone_teacher.pth'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'scenes'
    make_scenes(folder, train=32, val=4, test=1)
    return folder


@pytest.mark.parametrize(
    ('name', 'recipe', 'score'),
    [
        ('mmseg', 'seg_cwd.py', 'mIoU'),
        pytest.param('mmseg', 'seg_skd.py', 'mIoU', marks=pytest.mark.long),
        pytest.param('mmdet', 'det_ld.py', 'coco/bbox_mAP', marks=pytest.mark.long),
    ],
)
def test_the_frameworks_own_tool_runs_a_recipe(name, recipe, score, data, tmp_path, monkeypatch):
    config = ROOT / 'configs' / 'quickstart' / recipe
    monkeypatch.chdir(tmp_path)  # and in a process where nothing but the recipe imports kd_dense
    cure = []
    if name == 'mmseg' and fails_on_class_weights():
        cure = ['model.student.decode_head.loss_decode.class_weight=None']

    run(
        sys.executable, framework(name) / 'tools' / 'train.py', config, '--work-dir', 'run',
        '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
        'default_hooks.logger.interval=1', 'default_hooks.checkpoint=None',
        'model.student.test_cfg.score_thr=0.0',  # what hardly learnt is sure of nothing
        *cure,
        SCENES=str(data),
    )  # fmt: skip

    found = losses(Path('run'))
    assert [entry['step'] for entry in found] == [1, 2]
    for term in Config.fromfile(config).model.terms:
        assert any(value for key, value in found[0].items() if key.startswith(f'loss_kd_{term}'))
    assert logged(Path('run'))[-1][score] >= 0


def fails_on_class_weights():
    """Whether mmseg is the one that looks up the weight of ignored pixels too."""
    try:
        return version('mmsegmentation') == '1.2.2'
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_its_files_are_found_from_anywhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = [*files(Config.fromfile(path).to_dict())]
    taught = 'seg_teacher.py' in path.read_text() or 'det_teacher.py' in path.read_text()
    assert len(named) == ('det_' in path.stem) + 2 * taught
    for name in named:
        assert Path(name).is_file() or (path.stem, name) == ('det_teacher', TO_BE_TRAINED)


def files(value):
    """The configs and checkpoints that a config names."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ('config', 'checkpoint') and isinstance(item, str):
                yield item
            else:
                yield from files(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from files(item)
