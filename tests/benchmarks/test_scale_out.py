"""What the page about many GPUs says of messages, and that its model is of sense."""

import sys

import pytest

from benchmarks import scale_out
from benchmarks.scale_out import Cluster, Exchanged, Step, exchanged, simulate
from tests.launch import free_port, run
from tests.miniature import ROOT


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('cwd-pyramid', Exchanged(0, 0, 0)),
        ('fgd-pyramid', Exchanged(0, 0, 0)),
        ('logits-kd-64', Exchanged(1, 0, 4)),
        ('ld-100', Exchanged(1, 0, 20)),
        ('pkd-pyramid', Exchanged(1, 1, 40960)),
    ],
)
def test_what_losses_exchange(name, expected):
    assert exchanged(name) == expected


def test_simulated_steps():
    quiet = Cluster(jitter=0.0)
    alone = Step(teacher=0.02, forward=0.03, backward=0.05, loading=0.06)
    assert simulate(alone, quiet, 1, 10)['step'] == pytest.approx(0.1)
    assert simulate(alone._replace(loading=0.3), quiet, 8, 10)['step'] == pytest.approx(0.3)
    found = {gpus: simulate(alone, Cluster(), gpus, 200)['step'] for gpus in (8, 64, 512)}
    assert 0.1 < found[8] < found[64] < found[512] < 0.12
    waits = simulate(alone._replace(small=1), Cluster(), 64, 200)
    assert waits['step'] > found[64]
    assert waits['waiting'] > simulate(alone, Cluster(), 64, 200)['waiting']
    # Sent early enough, nobody waits for what is reduced.
    early = simulate(alone._replace(small=1, early=0.05), Cluster(), 64, 200)
    assert early['step'] == pytest.approx(found[64])
    # A ring moves nearly twice what is reduced; within a machine over its own links.
    assert Cluster(latency=0.0).all_reduce(8, 150e9) == pytest.approx(2 * 7 / 8)


def test_command(capsys, monkeypatch):
    found = dict(step=0.1, waiting=0.0, exchange=0.0)
    monkeypatch.setattr(scale_out, 'simulate', lambda *_: found)
    scale_out.main(['--simulate'])
    assert '100.00' in capsys.readouterr().out
    scale_out.main(['--only', 'cwd-logits'])
    assert 'cwd-logits' in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize('processes', [2, 4])
def test_messages_do_not_grow_with_processes(processes):
    said = run(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', processes,
               '--master_port', free_port(), '-m', 'benchmarks.scale_out', '--check',
               OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))  # fmt: skip
    assert '1 messages of gradients, 2128 bytes; 1 others' in said
