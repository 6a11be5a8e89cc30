"""The quickstart from end to end, on a tiny data set and a few iterations.

A run is a process of its own that spends more on its start than on four iterations; most tests do
them in their own process, as if it were another.
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from examples.quickstart import __main__ as command
from examples.quickstart import queue, report, training
from examples.quickstart.make_scenes import make_scenes

ROOT = Path(__file__).resolve().parents[3]
METHODS = {
    'seg': ['auto', 'CWD', 'SKD', 'IntRA-KD'],
    'det': ['auto', 'CWD', 'SKD', 'FGD', 'LD'],
}
FEW = {task: ['auto', 'CWD', 'SKD'] for task in METHODS}
# This one stays a process, and all in the tests of --long.
IN_A_PROCESS = 'det_cwd_seed0'


class Clock:
    """The CPU time of the runs in this process: each look at it is worth 100 s, with SKD 600 s."""

    now, step = 0.0, 100.0

    def process_time(self):
        self.now += self.step
        return self.now


def quickstart(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'examples.quickstart', *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    make_scenes(folder, train=8, val=2, test=2)
    return folder


@pytest.fixture
def quickstart_here(monkeypatch, capsys):
    """The same as a function that returns what is printed, its runs in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('SCENES', '')
    monkeypatch.setattr(report, 'PICTURES', 2)
    monkeypatch.setattr(report, 'measure_speed', partial(report.measure_speed, images=4))
    clock = Clock()
    monkeypatch.setattr(training, 'time', clock)
    soon = SimpleNamespace(sleep=lambda _: time.sleep(0.01), monotonic=time.monotonic)
    monkeypatch.setattr(queue, 'time', soon)
    started = SimpleNamespace(Popen=partial(start, clock), STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(queue, 'subprocess', started)
    read = training._read

    def read_with_a_name(spec):
        config = read(spec)
        # mmengine keeps loggers and visualizers of a process by this name
        config.experiment_name = spec['folder'].replace('/', '_')
        return config

    monkeypatch.setattr(training, '_read', read_with_a_name)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['quickstart', *map(str, arguments)])
        capsys.readouterr()
        command.main()
        return capsys.readouterr().out

    return run


def start(clock, words, stdout, **options):
    """Do a run of the queue, in a process only where it is to."""
    assert words[:4] == [sys.executable, '-m', 'examples.quickstart', '--job']
    spec = json.loads(words[4])
    if Path(spec['folder']).name == IN_A_PROCESS:
        return subprocess.Popen(words, stdout=stdout, **options)
    clock.step = 600.0 if 'seg_skd' in spec['folder'] else 100.0
    training.train_and_test(spec)
    return SimpleNamespace(poll=lambda: 0, returncode=0)


def assert_compared(tmp_path, printed, iterations, wanted):
    """All that is asked for is there; returns the results by run."""
    table = (tmp_path / 'results.md').read_text()
    assert table in printed + '\n'
    tables = dict(zip(wanted, table.split('### ')[1:], strict=True))
    for task, methods in wanted.items():
        rows = [line.split(' | ')[0].strip('| ') for line in tables[task].splitlines()[4:]]
        expected = ['teacher', 'student alone']
        for method in methods:
            expected += [f'student + {method}', f'student alone, CPU time of {method}']
        assert [row for row in rows if row] == expected
    for picture in ('curves', 'predictions_seg', 'predictions_det'):
        assert (tmp_path / f'{picture}.png').stat().st_size > 10_000

    results = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob('*/result.json')}
    assert len(results) == sum(2 + 2 * len(methods) for methods in wanted.values())
    for task in wanted:
        sizes = {r['parameters'] for n, r in results.items() if n.startswith(f'{task}_')}
        assert len(sizes) == 2  # the teacher's, and that of all students
        assert len(results[f'{task}_cwd_seed0']['curve']) == iterations
    return results


def test_trains_compares_and_draws(data, tmp_path, quickstart_here):
    methods = ('--methods', 'auto', 'cwd', 'skd')
    arguments = ('--data', data, '--work-dir', tmp_path, '--iterations', 2, *methods)
    results = assert_compared(tmp_path, quickstart_here(*arguments), 2, FEW)
    # Two steps alone cost 200 s; with SKD they cost as much as 10 more.
    longer = {name: r['iterations'] for name, r in results.items() if '_longer_' in name}
    assert longer.pop('seg_student_longer_skd_seed0') == 12
    assert len(longer) == 5
    assert {*longer.values()} == {2}
    table = (tmp_path / 'results.md').read_text()

    again = quickstart_here(*arguments)  # nothing is trained twice
    assert 'done:' not in again
    assert (tmp_path / 'results.md').read_text().splitlines()[:4] == table.splitlines()[:4]


@pytest.mark.long
def test_trains_in_processes(tmp_path):
    make_scenes(tmp_path / 'scenes', train=32, val=8, test=8)
    where = ('--data', tmp_path / 'scenes', '--work-dir', tmp_path)
    done = quickstart(*where, '--iterations', 4, '--methods', 'all')
    assert done.returncode == 0, done.stdout + done.stderr
    assert_compared(tmp_path, done.stdout, 4, METHODS)


def test_several_seeds_have_a_spread():
    assert report.spread([1.0, 2.0, 6.0]) == '3.0 ± 2.6'
    assert report.spread([1.0]) == '1.0'


def test_from_scratch_makes_what_is_committed(data, tmp_path, quickstart_here):
    where = ('--data', data, '--work-dir', tmp_path)
    quickstart_here(*where, '--iterations', 2, '--tasks', 'det', '--from-scratch')
    for name in ('det_teacher', 'backbone_student'):
        ours, committed = (
            torch.load(folder / f'{name}.pth', weights_only=True)['state_dict']
            for folder in (tmp_path / 'checkpoints', ROOT / 'configs/quickstart/checkpoints')
        )
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
            k: (v.shape, v.dtype) for k, v in committed.items()
        }
    spec = json.loads((tmp_path / 'det_auto_seed0' / 'result.json').read_text())['spec']
    assert spec['options']['model.teacher.checkpoint'] == str(
        tmp_path / 'checkpoints' / 'det_teacher.pth'
    )


def test_committed_checkpoints_are_small():
    for path in (ROOT / 'configs/quickstart/checkpoints').iterdir():
        assert path.stat().st_size < 4e6


def test_a_run_that_fails_shows_its_log(data, tmp_path, quickstart_here, monkeypatch):
    monkeypatch.setattr(f'{__name__}.IN_A_PROCESS', 'det_student_seed0')
    file = data / 'coco' / 'annotations' / 'instances_train2017.json'
    file.rename(tmp_path / 'moved')
    where = ('--data', data, '--work-dir', tmp_path, '--processes', 1)
    try:
        with pytest.raises(SystemExit) as error:
            quickstart_here(*where, '--iterations', 2, '--tasks', 'det')
    finally:
        (tmp_path / 'moved').rename(file)
    for text in ('detection: student, seed 0 failed', file.name, 'log.txt'):
        assert text in str(error.value)


def test_nonsense_is_refused():
    done = quickstart('--seeds', 0)
    assert done.returncode == 2
    assert '--seeds, --processes and --iterations must be at least 1' in done.stderr
