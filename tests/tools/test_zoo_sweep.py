from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from contextlib import redirect_stdout

import pytest
import torch
from mmengine.config import Config
from torch import nn

from tests.miniature import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
import zoo_sweep

# Quick ones: detectors, segmenters, one of our heads, and one that needs a package.
DETECTOR, FLAT, LACKS, SEGMENTER, SMALL, OURS = FAMILIES = (
    'mmdet/yolox',
    'mmdet/yolof',  # its neck yields one map
    'mmdet/convnext',
    'mmseg/fastscnn',
    'mmseg/erfnet',
    'kd_dense/fcos-distribution',
)
EXPECTED = {
    DETECTOR: ('plain', 'cwd', 'fgd'),
    FLAT: ('plain', 'cwd'),
    LACKS: ('plain',),
    SEGMENTER: ('plain', 'cwd', 'skd', 'intrakd'),
    SMALL: ('plain', 'cwd', 'skd', 'intrakd'),
    OURS: ('plain', 'cwd', 'fgd', 'ld'),
}


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['zoo_sweep.py', *map(str, arguments)])
        status = zoo_sweep.main()
        return status, capsys.readouterr().out

    return run


def trial(monkeypatch, attempt, limit=60.0):
    monkeypatch.setattr(zoo_sweep, 'attempt', attempt)
    return zoo_sweep.run(zoo_sweep.Trial('mmdet/any', 'cwd', (), {}), limit)


class TestTrial:
    def test_what_it_returns_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: dict(taps={'cwd': 'neck'}))
        assert record['ok']
        assert record['taps'] == {'cwd': 'neck'}
        assert (record['family'], record['method']) == ('mmdet/any', 'cwd')

    def test_an_error_is_recorded(self, monkeypatch):
        def attempt(_):
            raise ValueError('maps of\n  two shapes')

        record = trial(monkeypatch, attempt)
        assert not record['ok']
        assert record['reason'] == 'ValueError: maps of two shapes'

    def test_a_crash_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: os._exit(3))
        assert not record['ok']
        assert record['reason'] == 'the process ended with exit status 3'

    def test_a_hang_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: time.sleep(600), limit=0.5)
        assert not record['ok']
        assert record['reason'] == 'not finished after 0 s'

    def test_a_hang_after_the_result_does_not_stop_the_sweep(self, monkeypatch):
        def attempt(_):
            threading.Thread(target=time.sleep, args=(600,)).start()  # Python waits for it
            return {}

        assert trial(monkeypatch, attempt)['ok']


class Broken(nn.Linear):
    """A model with one fault."""

    def __init__(self, fault):
        super().__init__(3, 1)
        self.fault = fault
        self.data_preprocessor = lambda data, training: {}

    def init_weights(self):
        if self.fault == 'teacher':
            self.kd = nn.Identity()
            self.kd_plan = type('Plan', (), {'teacher': type('T', (), {'model': nn.Linear(1, 1)})})

    def forward(self, mode):
        loss = self.weight.square().sum()
        if self.fault == 'infinite':
            loss = loss / 0
        if self.fault == 'flat':
            loss = loss * 0
        losses = {'loss': loss}
        if self.fault == 'teacher':
            losses['loss_kd_x'] = loss
            self.kd_plan.teacher.model.weight.data += 1
        if self.fault == 'detached':
            losses['loss_kd_x'] = loss * 0
        return losses

    def parse_losses(self, losses):
        return sum(losses.values()), {name: value.detach() for name, value in losses.items()}


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('infinite', 'not finite: loss'),
        ('flat', 'no gradient flows into the student'),
        ('teacher', 'the teacher has changed: weight'),
        ('detached', 'no gradient flows from the terms'),
    ],
)
def test_finds_faults(monkeypatch, fault, message):
    monkeypatch.setattr(zoo_sweep, 'make_batch', lambda *_: {})
    model = Broken(fault)
    if fault == 'detached':
        model.kd = nn.Identity()
        model.kd_plan = type('Plan', (), {'teacher': type('T', (), {'model': nn.Identity()})})
    with pytest.raises(ValueError, match=message):
        zoo_sweep.train_step(model, None, (8, 8))
    assert torch.is_grad_enabled()


class TestStudent:
    PAIRS = [(ROOT / f'{name}.py', ROOT / 'teacher.py') for name in 'abc']

    def train(self, monkeypatch, **problems):
        def train_student(segments, student, teacher):
            record = dict(student=student.name, teacher=teacher.name)
            reason = problems.get(student.stem)
            return record | (dict(ok=False, reason=reason) if reason else dict(size=(64, 64)))

        monkeypatch.setattr(zoo_sweep, 'train_student', train_student)
        return zoo_sweep.train_plain(False, self.PAIRS)

    def test_is_the_smallest_that_trains(self, monkeypatch):
        assert self.train(monkeypatch)['student'] == 'a.py'
        record = self.train(monkeypatch, a='x', b='y')
        assert record['student'] == 'c.py'
        assert record['passed_over'] == {'a.py': 'x', 'b.py': 'y'}

    def test_is_the_smallest_if_none_trains(self, monkeypatch):
        record = self.train(monkeypatch, a='x', b='y', c='z')
        assert (record['ok'], record['student'], record['reason']) == (False, 'a.py', 'x')

    def test_choices_are_different_models_from_the_smallest_up(self, monkeypatch):
        widths = dict(e=9, d=3, copy_of_d=3, f=5, g=7)
        paths = {name: ROOT / f'{name}.py' for name in widths}
        configs = {
            paths[n]: Config(dict(model=dict(type='M', width=w))) for n, w in widths.items()
        }
        monkeypatch.setattr(zoo_sweep, 'read', configs.get)
        monkeypatch.setattr(zoo_sweep, 'parameters', lambda config: config.model.width)
        pairs = zoo_sweep.choose([*paths.values(), ROOT / 'no_model.py'])
        assert pairs == [(paths[name], paths['e']) for name in 'dfg']

    @pytest.mark.parametrize('neck', [
        dict(type='FPN', out_channels=256), [dict(type='FPN'), dict(type='BFP', out_channels=256)]
    ])  # fmt: skip
    def test_prefers_a_pyramid(self, neck, monkeypatch):
        necks = [None, dict(type='SSDNeck', out_channels=(512, 256)), neck]
        models = [dict(type='M', width=i, neck=neck) for i, neck in enumerate(necks)]
        models.append(dict(type='Tracker', width=3, detector=dict(neck=neck)))
        configs = {ROOT / f'{i}.py': Config(dict(model=m)) for i, m in enumerate(models)}
        monkeypatch.setattr(zoo_sweep, 'read', configs.get)
        monkeypatch.setattr(zoo_sweep, 'parameters', lambda config: config.model.width)
        students = [student.stem for student, _ in zoo_sweep.choose([*configs])]
        assert students == ['2', '3', '0']


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    """A sweep of some families: its results, its exit status and what it printed."""
    output, printed = tmp_path_factory.mktemp('zoo') / 'zoo.jsonl', io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, 'argv', ['zoo_sweep.py', *FAMILIES, '--output', str(output)])
        status = zoo_sweep.main()
    return output, status, printed.getvalue()


@pytest.fixture
def output(sweep):
    return sweep[0]


def test_families(sweep):
    output, status, out = sweep
    records = {(r['family'], r['method']): r for r in zoo_sweep.load(output)}
    bad = {key: r['reason'] for key, r in records.items() if not r['ok']}
    assert bad.keys() == {(LACKS, 'plain')}, bad
    assert 'mmpretrain' in bad[LACKS, 'plain']
    assert {*records} == {(family, m) for family, ms in EXPECTED.items() for m in ms}
    assert records[SEGMENTER, 'skd']['taps']['pixel'] == 'decode_head.conv_seg'
    assert '5 of 6 families train; 12 of 12 methods work' in out
    assert status == 0


def test_goes_on_where_it_stopped(run, output, monkeypatch):
    before = output.read_text()
    monkeypatch.setattr(zoo_sweep, 'run', lambda *_: pytest.fail('tried again'))
    assert run(*FAMILIES, '--output', output)[0] == 0
    assert output.read_text() == before


def test_tries_again_what_did_not_work(run, output, tmp_path, monkeypatch):
    again = tmp_path / 'zoo.jsonl'
    again.write_text(output.read_text())
    fixed = dict(family=LACKS, method='plain', operators=True, ok=True, seconds=1.0)
    monkeypatch.setattr(zoo_sweep, 'run', lambda *_: fixed)
    run(*FAMILIES, '--output', again, '--retry')
    assert all(record['ok'] for record in zoo_sweep.load(again))


def test_a_miss_is_a_bad_exit_status(run, output, tmp_path):
    changed = tmp_path / 'zoo.jsonl'
    records = zoo_sweep.load(output)
    for record in records:
        if record['method'] == 'fgd':
            record.update(ok=False, reason='ValueError: too | wide')
    changed.write_text(''.join(json.dumps(record) + '\n' for record in records))
    status, out = run(*FAMILIES, '--output', changed)
    assert status == 1
    assert f'{DETECTOR} fgd: no: ValueError: too | wide' in out


def test_the_page(run, output, tmp_path):
    other, page = tmp_path / 'other.jsonl', tmp_path / 'zoo.md'
    records = zoo_sweep.load(output)
    here = records[0]['operators']
    for record in records:
        record['operators'] = not here
        if (record['family'], record['method']) == (DETECTOR, 'cwd'):
            record.update(ok=False, reason='ValueError: too | wide')
        if (record['family'], record['method']) == (SMALL, 'plain'):
            record['passed_over'] = {'tiny.py': 'ValueError: too small'}
    other.write_text(''.join(json.dumps(record) + '\n' for record in records))
    assert run('--table', page, '--results', output, other)[0] == 0
    text = page.read_text()
    rows = {line.split(' | ')[0]: line.split(' | ') for line in text.splitlines()}
    assert rows['| fastscnn'][4:] == ['yes', 'yes', 'yes', 'yes |']
    assert rows['| fcos-distribution'][4:] == ['yes', 'yes', 'yes', 'yes |']
    assert rows['| yolof'][4:] == ['yes', 'yes', '', ' |']
    good, bad = ('2 of 2', '1 of 2') if here else ('1 of 2', '2 of 2')
    assert f'| mmdet | cwd | {good} | {bad} |' in text
    assert 'ValueError: too / wide' in text
    where = 'without' if here else 'with'
    assert f'| {SMALL} | plain | {where} | `tiny: ValueError: too small` |' in text
    assert 'mmpretrain' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['mmdet/retinanett'], "did you mean 'mmdet/retinanet'"),
        (['--table', 'zoo.md'], 'needs --results'),
        (['--table', 'zoo.md', '--results', 'nowhere.jsonl'], 'nowhere.jsonl does not exist'),
    ],
)
def test_bad_input(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert message in f'{stop.value}{capsys.readouterr().err}'
