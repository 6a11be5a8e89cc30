import json
import math
from argparse import Namespace

import pytest

from examples.quickstart.make_scenes import make_scenes
from kd_dense.cli import check
from kd_dense.mm.check.finding import Finding
from tests.launch import DETECTOR, call
from tests.miniature import ROOT, make_data, write_small


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '200')

    def run(*arguments):
        code = 0
        try:
            call('check', *arguments, '--device', 'cpu')
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    make_scenes(tmp_path / 'scenes', train=4, val=4, test=1)
    monkeypatch.setenv('SCENES', str(tmp_path / 'scenes'))
    monkeypatch.chdir(ROOT)


def test_without_a_recipe(run, scenes, tmp_path):
    code, said = run(
        'configs/quickstart/seg_student.py',
        '--teacher', 'configs/quickstart/seg_teacher.py',
        '--teacher-checkpoint', 'configs/quickstart/checkpoints/seg_teacher.pth',
        '--distill', 'cwd', '--batches', 1, '--images', 4,
        '--cfg-options', 'train_dataloader.batch_size=2',
        f'work_dir={tmp_path / "work"}',
    )  # fmt: skip
    assert code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith('ok      model: EncoderDecoder from configs/quickstart/seg_teacher')
    assert any(line.startswith('ok      terms: cwd: ') for line in lines)
    assert lines[-1].endswith(' 0 error')
    assert 'checking terms: batch 1 of 1' in said.err
    assert not (tmp_path / 'work').exists()


def test_what_is_proposed_can_be_copied(run, scenes, tmp_path):
    """Both commands, up to a training that begins with the proposed weight."""
    recipe = 'configs/quickstart/seg_cwd.py'
    options = ['train_dataloader.batch_size=2', 'model.terms.logits.loss.weight=1e6']
    code, said = run(recipe, '--batches', 1, '--images', 2, '--cfg-options', *options)
    assert code == 0
    *_, head, command = said.out.splitlines()
    assert head == 'to train with the proposed weights:'
    option = command.rpartition(' ')[2]
    assert command == f'  kd_dense train {recipe} --cfg-options {option}'
    assert f'-> {option} makes its gradient as long' in said.out
    again = run(recipe, '--batches', 1, '--images', 2, '--cfg-options', options[0], option)
    assert 'proposed' not in again[1].out
    assert ', 0 warning, 0 error' in again[1].out


@pytest.mark.parametrize(
    ('preset', 'teacher', 'checkpoint', 'weights', 'expected'),
    [
        (None, None, None, 'auto', []),
        ('x', None, None, 'auto', ['a/s.py --dump-config work_dirs/s_x.py']),
        (
            ['x', 'y'],
            't.py',
            't 1.pth',
            'published',
            ['a/s.py --dump-config work_dirs/s_x_y.py --teacher t.py --distill x y '
             "--teacher-checkpoint 't 1.pth' --weights published"],
        ),
    ],
)  # fmt: skip
def test_a_preset_is_written_down_first(preset, teacher, checkpoint, weights, expected):
    found = Finding('terms', 'warning', '', '', dict(option='model.terms.x.loss.weight=2'))
    args = Namespace(
        config='a/s.py', teacher=teacher, teacher_checkpoint=checkpoint, weights=weights
    )
    recipe = expected[0].split()[2] if expected else 'a/s.py'
    assert check.commands(args, preset, [found, found._replace(status='ok')]) == [
        f'kd_dense train {line}'
        for line in [*expected, f'{recipe} --cfg-options model.terms.x.loss.weight=2']
    ]


def test_a_recipe_of_mmdet_for_machines(run, scenes, tmp_path):
    code, said = run(
        'configs/quickstart/det_cwd.py', '--json', '--batches', 1, '--images', 2,
        '--cfg-options', 'train_dataloader.batch_size=2', 'model.teacher.checkpoint=None',
        f'work_dir={tmp_path / "run"}',
    )  # fmt: skip
    found = json.loads(said.out)
    assert said.err == ''
    assert code == 1
    assert not found['ok']
    wrong = [finding for finding in found['findings'] if finding['status'] == 'error']
    assert [finding['check'] for finding in wrong] == ['teacher checkpoint']
    names = {finding['check'] for finding in found['findings']}
    assert names >= {'model', 'data', 'taps', 'preprocessing', 'scores', 'terms', 'cost'}
    assert not (tmp_path / 'run').exists()


def test_what_is_no_number_is_null_for_machines():
    """An untrained model of depth may score nan, which JSON has no word for."""
    figures = dict(a=math.nan, b=[1.5, -math.inf], c=(2, {'d': math.inf}), e='x')
    assert check.for_machines(figures) == dict(a=None, b=[1.5, None], c=[2, {'d': None}], e='x')


def test_what_cannot_be_built(run, data, tmp_path):
    config = write_small(DETECTOR, data, tmp_path / 'run', model__terms__cwd__tap='nekc')
    code, said = run(config)
    assert code == 1
    assert "did you mean 'neck'" in said.out
    assert 'Traceback' not in said.out + said.err
    assert '-> put this right' in said.out


def test_arguments(run):
    for words, message in (
        (['x.py', '--distill', 'cwd'], 'want a teacher (--teacher)'),
        (['x.py', '--images', '0'], '--batches and --images must be at least 1'),
        (['x.py'], 'x.py does not exist'),
    ):
        assert message in run(*words)[0]
