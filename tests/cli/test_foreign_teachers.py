"""The commands with a teacher of timm, which yields features and predicts nothing."""

import json
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config

import kd_dense
from examples.quickstart.make_scenes import make_scenes
from kd_dense.mm.stack.torchvision import import_timm
from tests.launch import call
from tests.miniature import ROOT

STUDENT = ROOT / 'configs' / 'quickstart' / 'seg_student.py'
TEACHER = 'timm::test_resnet'  # a tiny one that timm has for tests
pytestmark = pytest.mark.skipif(find_spec('timm') is None, reason='timm is not installed')
SMALL = {'train_dataloader.batch_size': 2}


@pytest.fixture(autouse=True)
def scenes(tmp_path, monkeypatch):
    make_scenes(tmp_path / 'scenes', train=4, val=2, test=1)
    monkeypatch.setenv('SCENES', str(tmp_path / 'scenes'))
    monkeypatch.setenv('COLUMNS', '160')


@pytest.fixture
def recipe(tmp_path):
    file, weights = tmp_path / 'recipe.py', tmp_path / 'weights.pth'
    torch.save(import_timm().create_model('test_resnet').state_dict(), weights)
    call('train', STUDENT, '--teacher', TEACHER, '--teacher-checkpoint', weights,
         '--distill', 'cosine', '--dump-config', file)  # fmt: skip
    return file


def test_taps_alone_beside_a_student_and_of_a_recipe(recipe, capsys):
    call('taps', TEACHER, '--json')
    alone = {tap['tap']: tap for tap in json.loads(capsys.readouterr().out)}
    assert 'backbone' in alone
    assert all('student' not in tap for tap in alone.values())
    call('taps', STUDENT, '--match', TEACHER, '--json')
    matched = json.loads(capsys.readouterr().out)
    call('taps', recipe, '--json')
    assert matched == json.loads(capsys.readouterr().out)
    assert {tap['tap']: tap for tap in matched}['backbone']['teacher']['shapes']


def test_check(recipe):
    found = kd_dense.check(str(recipe), batches=1, images=2, options=SMALL)
    assert not [one for one in found if one.status == 'error'], found
    assert 'timm::test_resnet yields features and has no score' in str(found)


def test_visualize(recipe, tmp_path):
    call('visualize', recipe, '--indices', 0, '--out', tmp_path / 'out')
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert 'Term cosine' in page


def test_the_recipe_says_what_was_chosen(recipe):
    model = Config.fromfile(recipe).model
    assert model.teacher.config == TEACHER
    assert model.terms.cosine.share == 1.0
    assert model.terms.cosine.tap.teacher.startswith('backbone')
