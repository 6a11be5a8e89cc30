"""A training that is killed again and again, and resumed, ends as one that never was.

What is killed is a process of its own that runs tools/train.py. It ends by SIGKILL at a moment
that a seeded generator chooses: at some call of a Python function, or while a file is written.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kd_dense.mm.files.checkpoint import read_file
from kd_dense.mm.hooks.checkpoint import is_complete
from tests.cli.kill import INTERVAL, ITERS, write_config
from tests.launch import run_here
from tests.miniature import ROOT

TRAIN = ROOT / 'tools' / 'train.py'
SAVED = ('state_dict', 'optimizer', 'param_schedulers', 'kd_dense_random_state')


def train(config: Path, work_dir: Path, *options: str, kill: str = '') -> tuple[int, str]:
    """Run tools/train.py and return its exit status and what it said."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
    if kill:
        environment['KILL'] = kill
    done = subprocess.run(
        [sys.executable, str(TRAIN), str(config), '--work-dir', str(work_dir), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def train_here(monkeypatch, capsys):
    """The same, but what is not killed runs in this process."""

    def run(config: Path, work_dir: Path, *options: str, kill: str = '') -> tuple[int, str]:
        if kill:
            return train(config, work_dir, *options, kill=kill)
        capsys.readouterr()
        run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, *options)
        return 0, ''.join(capsys.readouterr())

    return run


def number(path: Path) -> int:
    return int(re.findall(r'\d+', path.name)[0])


def saved(work_dir: Path) -> list[Path]:
    """Checkpoints under their final names, the oldest first."""
    return sorted([*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')], key=number)


def assert_same(a, b, where=''):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f'{where}.{index}')
    else:
        assert a == b, where


def kill_and_resume(method, kinds, tmp_path, iters=ITERS, train=train):
    """Kill a training at a moment of each kind, and compare how it ends with a whole one.

    Returns:
        The iterations that it went on from.
    """
    config = write_config(method, tmp_path / f'{method}.py', iters)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    status, said = train(config, whole)
    assert status == 0, said[-4000:]
    calls = int((whole / 'calls').read_text())

    choose = random.Random(f'{method} {len(kinds)}')
    resumed = []
    for kind in [*kinds, None]:
        start = saved(killed)[-1:]
        done = number(*start) * (INTERVAL if method == 'fgd' else 1) if start else 0
        # The share of the work to do before the kill: less than is left, and some for others.
        share = choose.random() * min(0.95 * (iters - done) / iters, 2.5 / len(kinds))
        saves = min(2, (iters - done) // INTERVAL)
        files = choose.randint(1, 2 * saves)  # each time a checkpoint, then last_checkpoint
        moment = {
            'call': f'call {int(share * calls) + 1}',
            'half': f'half {2 * choose.randint(1, saves) - 1} {choose.random():.3f}',
            'whole': f'whole {files}',
            'named': f'named {files}',
            None: '',
        }[kind]
        status, said = train(config, killed, '--resume', kill=moment)
        left = list(killed.glob('*.incomplete'))
        names = [path.name for path in left]
        print(f'{method}: from {done:2d}, {moment or "to the end"}; left {names}')
        assert status == (-9 if kind else 0), said[-4000:]
        if kind == 'half':
            assert [name.endswith('.pth.incomplete') for name in names] == [True]
            assert not is_complete(left[0])
        if start:
            assert f'resuming from {start[0]}\n' in said
            assert kind == 'call' or f'iter: {done}' in said  # may be killed while it loads
            resumed.append(done)
        else:
            assert 'holds no checkpoint: starting from the beginning' in said

    a, b = (read_file(saved(folder)[-1]) for folder in (whole, killed))
    assert a['meta']['iter'] == b['meta']['iter'] == iters
    keys = [*SAVED, 'kd_dense_critics'] if method == 'skd' else SAVED
    for key in keys:
        assert_same(a[key], b[key], key)
    assert any('kd.' in name for name in a['state_dict'])  # adapters, and the critic
    return resumed


def test_a_kill_of_a_short_training(tmp_path, train_here):
    """While it writes its second checkpoint."""
    assert kill_and_resume('skd', ['half'], tmp_path, 9, train_here) == [INTERVAL]


@pytest.mark.long
@pytest.mark.parametrize('method', ['cwd', 'fgd', 'skd'])
def test_ten_kills(method, tmp_path):
    kinds = ['call'] * 5 + ['half'] * 3 + ['whole', 'named']
    random.Random(method).shuffle(kinds)
    assert len(set(kill_and_resume(method, kinds, tmp_path))) > 2
