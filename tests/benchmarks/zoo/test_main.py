from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout

import pytest

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import sweep as sweeps
from benchmarks.zoo.page import APPLY
from benchmarks.zoo.records import load

# Quick ones: detectors, segmenters, one of our heads, and one that needs a package.
DETECTOR, FLAT, LACKS, SEGMENTER, OURS = FAMILIES = (
    'mmdet/yolox',
    'mmdet/yolof',  # its neck yields one map
    'mmdet/convnext',
    'mmseg/erfnet',
    'kd_dense/fcos-distribution',
)
FEATURES = ('plain', 'cwd', 'fitnets', 'pkd', 'vkd', 'cosine', 'mgd', 'sp', 'pkt', 'rkd', 'cckd',
            'nst')  # fmt: skip
SEGMENTERS = ('aicsd', 'dsd', 'edge_body', 'af_dcd', 'ickd', 'cross_image', 'at', 'ifvd', 'apd',
              'cirkd', 'reviewkd')  # fmt: skip
PYRAMIDS = ('fgd', 'defeat', 'reviewkd', 'frs')
LOGITS = ('kd', 'dist', 'dkd', 'gdkd', 'nkd', 'wsld')
EXPECTED = {
    DETECTOR: (*FEATURES, *PYRAMIDS),
    FLAT: FEATURES,
    LACKS: ('plain',),
    SEGMENTER: (*FEATURES, 'skd', 'intrakd', *LOGITS, *SEGMENTERS),
    OURS: (*FEATURES, *PYRAMIDS, 'ld', 'dist', 'bckd', 'adl', 'crosskd', 'pgd'),
}


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['zoo', *map(str, arguments)])
        status = command.main()
        return status, capsys.readouterr().out

    return run


def swept(folder):
    """A sweep of some families: its results, its exit status and what it printed."""
    output, printed = folder / 'zoo.jsonl', io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, 'argv', ['zoo', *FAMILIES, '--output', str(output)])
        status = command.main()
    return output, status, printed.getvalue()


# Of the other trials it is taken that they work; with --long all are tried.
TRIED = ((DETECTOR, 'fgd'), (OURS, 'ld'), (SEGMENTER, 'skd'))


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    really = sweeps.run

    def run(trial, limit):
        chosen = {(trial.family, method) for method in trial.methods}
        if not chosen or chosen & {*TRIED}:
            return really(trial, limit)
        found = dict(family=trial.family, operators=sweeps.has_operators())
        return found | dict(ok=True, taps={}, seconds=0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, 'run', run)
        return swept(tmp_path_factory.mktemp('zoo'))


@pytest.fixture
def output(sweep):
    return sweep[0]


def test_families(sweep):
    assert_all_work(*sweep)


@pytest.mark.long
def test_every_method_on_each_family(tmp_path):
    assert_all_work(*swept(tmp_path))


def assert_all_work(output, status, out):
    records = {(r['family'], r['method']): r for r in load(output)}
    bad = {key: r['reason'] for key, r in records.items() if not r['ok']}
    assert bad.keys() == {(LACKS, 'plain')}, bad
    assert 'mmpretrain' in bad[LACKS, 'plain']
    assert {*records} == {(family, m) for family, ms in EXPECTED.items() for m in ms}
    assert records[SEGMENTER, 'skd']['taps']['pixel'] == 'decode_head.conv_seg'
    methods = sum(len(some) - 1 for some in EXPECTED.values())
    assert f'4 of 5 families train; {methods} of {methods} methods work' in out
    assert status == 0


def test_goes_on_where_it_stopped(run, output, monkeypatch):
    before = output.read_text()
    monkeypatch.setattr(sweeps, 'run', lambda *_: pytest.fail('tried again'))
    assert run(*FAMILIES, '--output', output)[0] == 0
    assert output.read_text() == before


def test_tries_again_what_did_not_work(run, output, tmp_path, monkeypatch):
    again = tmp_path / 'zoo.jsonl'
    again.write_text(output.read_text())
    fixed = dict(family=LACKS, operators=True, ok=True, seconds=1.0)
    monkeypatch.setattr(sweeps, 'run', lambda *_: fixed)
    run(*FAMILIES, '--output', again, '--retry')
    assert all(record['ok'] for record in load(again))


def test_a_miss_is_a_bad_exit_status(run, output, tmp_path):
    changed = tmp_path / 'zoo.jsonl'
    records = load(output)
    for record in records:
        if record['method'] == 'fgd':
            record.update(ok=False, reason='ValueError: too | wide')
    changed.write_text(''.join(json.dumps(record) + '\n' for record in records))
    status, out = run(*FAMILIES, '--output', changed)
    assert status == 1
    assert f'{DETECTOR} fgd: no: ValueError: too | wide' in out


def test_the_page(run, output, tmp_path):
    other, page = tmp_path / 'other.jsonl', tmp_path / 'zoo.md'
    records = load(output)
    here = records[0]['operators']
    for record in records:
        record['operators'] = not here
        if (record['family'], record['method']) == (DETECTOR, 'cwd'):
            record.update(ok=False, reason='ValueError: too | wide')
        if (record['family'], record['method']) == (SEGMENTER, 'plain'):
            record['passed_over'] = {'tiny.py': 'ValueError: too small'}
    other.write_text(''.join(json.dumps(record) + '\n' for record in records))
    assert run('--table', page, '--results', output, other)[0] == 0
    text = page.read_text()
    rows = {line.split(' | ')[0]: line.split(' | ') for line in text.splitlines()}
    for family in (SEGMENTER, OURS, FLAT):
        framework, _, name = family.partition('/')
        *cells, last = ('yes' * (m in EXPECTED[family]) for m in APPLY[framework])
        assert rows[f'| {name}'][4:] == [*cells, f'{last} |']
    good, bad = ('2 of 2', '1 of 2') if here else ('1 of 2', '2 of 2')
    assert f'| mmdet | cwd | {good} | {bad} |' in text
    assert 'ValueError: too / wide' in text
    where = 'without' if here else 'with'
    assert f'| {SEGMENTER} | plain | {where} | `tiny: ValueError: too small` |' in text
    assert 'mmpretrain' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['mmdet/retinanett'], "did you mean 'mmdet/retinanet'"),
        (['--steps', '0'], 'takes a number from 1 on, got 0'),
        (['--table', 'zoo.md'], 'needs --results'),
        (['--table', 'zoo.md', '--results', 'nowhere.jsonl'], 'nowhere.jsonl does not exist'),
    ],
)
def test_bad_input(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert message in f'{stop.value}{capsys.readouterr().err}'
