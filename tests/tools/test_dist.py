"""The launchers: torchrun on this machine, and what they pass on to Slurm."""

import json
import os
import shutil

import pytest
import torch
from mmengine.config import Config

from kd_dense.mm.configs import build_model
from tests.launch import SEGMENTER, free_port, losses, run
from tests.miniature import ROOT, make_data, write_small

TOOLS = ROOT / 'tools'


@pytest.mark.parametrize('script', sorted(TOOLS.glob('*.sh')), ids=lambda path: path.name)
def test_is_bash(script):
    run('bash', '-n', script)


# Python runs a sitecustomize.py by itself; this one writes down which threads a process ends with.
THREADS_AT_EXIT = """
import atexit, os, pathlib

def write():
    names = [path.read_text().strip() for path in pathlib.Path('/proc/self/task').glob('*/comm')]
    if 'RANK' in os.environ:
        here = pathlib.Path(__file__).parent
        (here / f'{os.getpid()}.txt').write_text('\\n'.join(names))

atexit.register(write)
"""


@pytest.fixture
def threads_at_exit(tmp_path, monkeypatch):
    """The names of the threads that the processes of a launch were left with."""
    folder = tmp_path / 'exits'
    folder.mkdir()
    (folder / 'sitecustomize.py').write_text(THREADS_AT_EXIT)
    before = os.environ.get('PYTHONPATH')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(folder), before])))

    def names():
        found = {path: path.read_text().split('\n') for path in folder.glob('*.txt')}
        for path in found:
            path.unlink()
        return list(found.values())

    return names


@pytest.fixture
def config(tmp_path):
    return write_small(SEGMENTER, make_data(tmp_path / 'data'), tmp_path / 'run')


def test_two_processes_train_a_recipe(config, tmp_path, threads_at_exit):
    said = run('bash', TOOLS / 'dist_train.sh', config, 2, PORT=free_port())

    # a thread of gloo that is left aborts the process now and then, after all is done
    left = threads_at_exit()
    assert len(left) == 2
    assert not [name for names in left for name in names if 'gloo' in name]

    assert 'SyncBN does not run on CPUs' in said
    assert 'Distributed training: True' in said
    assert [entry['step'] for entry in losses(tmp_path / 'run')] == [1, 2]
    assert all(entry['loss_kd_cwd'] > 0 for entry in losses(tmp_path / 'run'))
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    shutil.rmtree(tmp_path)


@pytest.mark.long
def test_two_processes_test_a_recipe(config, tmp_path, threads_at_exit):
    model = build_model(Config.fromfile(config))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'iter_2.pth')

    run('bash', TOOLS / 'dist_test.sh', config, tmp_path / 'iter_2.pth', 2,
        '--work-dir', tmp_path / 'tested', PORT=free_port())  # fmt: skip

    left = threads_at_exit()
    assert len(left) == 2
    assert not [name for names in left for name in names if 'gloo' in name]
    [scores] = (tmp_path / 'tested').glob('*/*.json')
    assert json.loads(scores.read_text())['mIoU'] >= 0
    shutil.rmtree(tmp_path)


@pytest.fixture
def recorded(tmp_path):
    """Put programs first on the path that only write down how they were called."""
    for name in ('srun', 'python'):
        program = tmp_path / 'bin' / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path / name}\n')
        program.chmod(0o755)

    def call(script, *args, **environment):
        run('bash', TOOLS / script, *args, PATH=str(tmp_path / 'bin'), **environment)
        name = 'srun' if script.startswith('slurm') else 'python'
        return (tmp_path / name).read_text().splitlines()

    return call


def test_torchrun_for_training(recorded):
    assert recorded('dist_train.sh', 'config.py', 8, '--work-dir', 'a folder', '--resume') == [
        *('-m', 'torch.distributed.run', '--nnodes=1', '--node_rank=0'),
        *('--master_addr=127.0.0.1', '--master_port=29500', '--nproc_per_node=8'),
        *(str(TOOLS / 'train.py'), 'config.py', '--launcher', 'pytorch'),
        *('--work-dir', 'a folder', '--resume'),
    ]


def test_torchrun_on_several_machines(recorded):
    words = recorded('dist_test.sh', 'config.py', 'x.pth', 4, '--out', 'x.pkl',
                     NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')  # fmt: skip
    assert words == [
        *('-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1'),
        *('--master_addr=10.0.0.1', '--master_port=1234', '--nproc_per_node=4'),
        *(str(TOOLS / 'test.py'), 'config.py', 'x.pth', '--launcher', 'pytorch'),
        *('--out', 'x.pkl'),
    ]


def test_slurm_for_training(recorded):
    words = recorded('slurm_train.sh', 'part', 'job', 'config.py', 'a folder',
                     '--cfg-options', 'randomness.seed=1',
                     GPUS='16', SRUN_ARGS='--nodelist a --time 1:00')  # fmt: skip
    assert words == [
        *('-p', 'part', '--job-name=job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8'),
        *('--cpus-per-task=5', '--kill-on-bad-exit=1', '--nodelist', 'a', '--time', '1:00'),
        *('python', '-u', str(TOOLS / 'train.py'), 'config.py', '--work-dir=a folder'),
        *('--launcher', 'slurm', '--cfg-options', 'randomness.seed=1'),
    ]


def test_slurm_with_less_than_a_machine(recorded):
    words = recorded('slurm_test.sh', 'part', 'job', 'config.py', 'x.pth', GPUS='2',
                     CPUS_PER_TASK='3')  # fmt: skip
    assert words == [
        *('-p', 'part', '--job-name=job', '--gres=gpu:2', '--ntasks=2', '--ntasks-per-node=2'),
        *('--cpus-per-task=3', '--kill-on-bad-exit=1'),
        *('python', '-u', str(TOOLS / 'test.py'), 'config.py', 'x.pth', '--launcher', 'slurm'),
    ]


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_says_how_it_is_used(script):
    assert f'usage: bash tools/{script}.sh' in run('bash', TOOLS / f'{script}.sh', ok=False)
