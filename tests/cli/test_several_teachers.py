"""The commands on a recipe with two teachers, of which one is the student's average."""

import json

import pytest
from mmengine.config import Config

from examples.quickstart.make_scenes import make_scenes
from kd_dense.cli import benchmark
from kd_dense.mm.configs import build_model
from tests.launch import call
from tests.miniature import ROOT

RECIPES = ROOT / 'configs' / 'quickstart'
TWO = RECIPES / 'seg_two_teachers.py'


def test_taps_compares_with_each_teacher_that_has_a_config(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '160')
    call('taps', TWO, '--json')
    found = {tap['tap']: tap for tap in json.loads(capsys.readouterr().out)}
    assert found['decode_head.conv_seg']['verdict'] == 'fits'
    assert found['backbone.layer4']['verdict'] == 'adapter'
    call('taps', RECIPES / 'seg_ema.py')
    assert 'can be distilled' not in capsys.readouterr().out


def test_benchmark_adds_up_their_floors(tmp_path):
    path = tmp_path / 'figures.json'
    words = [TWO, '--size', 64, 64, '--rounds', 1, '--threads', 1, '--json', path]
    call('benchmark', *words)
    [found] = json.loads(path.read_text())['recipes'].values()
    minimal = found['guest']['minimal']
    assert 'seg_teacher up to' in minimal
    assert "and the student's running average up to decode_head.conv_seg" in minimal
    assert [*found['terms']] == ['logits', 'features', 'average']
    assert benchmark.read(str(TWO), []).model.teacher.keys() == {'large', 'average'}


def test_the_average_by_one_command(tmp_path, capsys):
    student = RECIPES / 'seg_student.py'
    file = tmp_path / 'recipe.py'
    call('train', student, '--teacher', 'ema', '--distill', 'kd', '--dump-config', file)
    recipe = Config.fromfile(file)
    assert recipe.model.teacher == dict(type='ema')
    model = build_model(recipe)
    assert model.kd_plan.teacher.name == "the student's running average"
    with pytest.raises(SystemExit, match='has no checkpoint of its own'):
        call('train', student, '--teacher', 'ema', '--teacher-checkpoint', 'x.pth')


def test_visualize_shows_each(tmp_path, monkeypatch):
    make_scenes(tmp_path / 'scenes', train=2, val=2, test=2)
    monkeypatch.setenv('SCENES', str(tmp_path / 'scenes'))
    call('visualize', TWO, '--indices', 0, '--out', tmp_path / 'out')
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert 'teacher &#x27;large&#x27;' in page
    assert 'the student&#x27;s running average' in page
    assert 'Term average' in page
