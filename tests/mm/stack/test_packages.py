"""Configs by name: ``kd_dense::`` and ``mmseg::``, as mmengine finds them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config

import kd_dense
from kd_dense.mm.stack import packages

PACKAGE = Path(kd_dense.__file__).parent
CONFIGS = PACKAGE.parent / 'configs'
RECIPE = 'fgd/fgd_retinanet-r50_from_retinanet-x101-64x4d_2x_coco.py'
RECIPES = [
    RECIPE,
    'intrakd/intrakd_erfnet_from_pspnet-r101_24e_apolloscape.py',  # sets everything itself
    'ld/gfl_r18_1x_coco.py',  # distils nothing
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No test finds a config because it is run in the checkout."""
    monkeypatch.chdir(tmp_path)


def from_base(name, more=''):
    path = Path('mine.py')
    path.write_text(f'_base_ = {name!r}\n{more}')
    return Config.fromfile(path)


READERS = pytest.mark.parametrize('read', [get_config, from_base])


@READERS
@pytest.mark.parametrize('recipe', RECIPES)
def test_is_read_as_by_its_path(read, recipe):
    found, expected = read(f'kd_dense::{recipe}'), Config.fromfile(CONFIGS / recipe)
    # with every `_scope_`: a recipe names things of mmdet and mmseg
    assert found.to_dict() == expected.to_dict()


def test_a_recipe_is_changed_by_a_config_of_one_s_own():
    change = 'model = dict(terms=dict(fgd=dict(loss=dict(temperature=2.0))))\n'
    found, expected = from_base(f'kd_dense::{RECIPE}', change), Config.fromfile(CONFIGS / RECIPE)
    assert expected.model.terms.fgd.loss.temperature == 0.5
    expected.model.terms.fgd.loss.temperature = 2.0
    assert found.to_dict() == expected.to_dict()


@READERS
def test_a_misspelt_name(read):
    with pytest.raises(FileNotFoundError, match=r'\.mim/configs/fgd/retina\.py" does not exist'):
        read('kd_dense::fgd/retina.py')


@READERS
def test_an_installation_without_configs(read, tmp_path, monkeypatch):
    spec = importlib.util.find_spec('kd_dense.registry')
    monkeypatch.setattr(spec, 'origin', str(tmp_path / 'kd_dense' / 'registry.py'))
    with pytest.raises(FileNotFoundError, match=rf'{tmp_path}/kd_dense/\.mim/model-index\.yml'):
        read(f'kd_dense::{RECIPE}')


def test_bases_of_others_keep_their_scope():
    assert from_base('mmdet::_base_/models/retinanet_r50_fpn.py').model['_scope_'] == 'mmdet'


def test_applied_twice_is_applied_once():
    packages.find_configs()
    before = dict(MODULE2PACKAGE), Config._get_cfg_path
    packages.find_configs()
    assert before == (MODULE2PACKAGE, Config._get_cfg_path)


@READERS
def test_mmseg(read, monkeypatch):
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')  # as mmengine has it
    packages.find_configs()
    model = read('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py').model
    assert (model.type, model.backbone.depth) == ('EncoderDecoder', 18)


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_copy_that_is_imported_counts(tmp_path):
    """And not the one that is installed; nor does mmengine go and install it."""
    copy = tmp_path / 'path' / 'kd_dense'
    (copy / '.mim').mkdir(parents=True)
    for path in [*PACKAGE.glob('[!.]*'), *(PACKAGE / '.mim').iterdir()]:
        (copy / path.relative_to(PACKAGE)).symlink_to(path)
    found = run_python(
        'import kd_dense.mm\n'
        'from mmengine.hub import get_config\n'
        'from mmengine.utils import package_utils\n'
        'package_utils.call_command = None\n'
        f'print(get_config("kd_dense::{RECIPE}").filename)\n',
        PYTHONPATH=str(copy.parent),
    )
    assert found.split()[-1] == str(copy / '.mim' / 'configs' / RECIPE)


def test_a_first_base_imports_kd_dense():
    Path('first.py').write_text("__import__('kd_dense.mm')\n")
    Path('alone.py').write_text(f"_base_ = 'kd_dense::{RECIPE}'\n")
    Path('mine.py').write_text(f"_base_ = ['first.py', 'kd_dense::{RECIPE}']\n")
    out = run_python(
        'from mmengine.config import Config\n'
        'try:\n'
        '    Config.fromfile("alone.py")\n'
        'except AssertionError as error:\n'
        '    print(error)\n'
        'print(Config.fromfile("mine.py").model.type)\n'
    )
    assert 'mmengine does not support to load kd_dense config' in out
    assert out.split()[-1] == 'kd_dense.Distilled'
