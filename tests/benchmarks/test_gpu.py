"""What would run on a GPU: the commands are real, and their figures come into the tables."""

import json

import pytest

from benchmarks import gpu, losses
from kd_dense.cli import benchmark
from tests.miniature import ROOT

TIMES = dict(median=0.25, low=0.2, high=0.3)
RECIPE = {
    'step': 'the step',
    'step_to_floor': dict(median=1.02, low=1.0, high=1.04),
    'losses_to_step': dict(median=0.01),
    'peak_to_floor': 0.9,
}


def stepped(words):
    """Figures of steps, of recipes that are there, and options that the command has."""
    parser = benchmark.argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    args = parser.parse_args(words)
    recipes = [args.config, *(one[0] for one in args.against)]
    assert all((ROOT / path).is_file() for path in recipes)
    calls = {'plain step': TIMES, 'the step': TIMES}
    figures = dict(
        size=args.size, batch_size=args.batch_size, calls=calls, recipes={'one': RECIPE}
    )
    args.json.write_text(json.dumps(figures))
    return 0


@pytest.fixture
def here(monkeypatch):
    """Commands run in this process: the losses, and steps that are none."""

    class Process:
        def __init__(self, command, **_):
            self.command = command[2:]

        def wait(self, timeout):
            assert timeout > 0
            module, *words = self.command
            if module == 'benchmarks.losses':
                return losses.main(words)
            return stepped(words[1:]) if module == 'kd_dense' else 1

    monkeypatch.setattr(gpu.subprocess, 'Popen', Process)


def test_without_a_gpu(here, tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text(f'above\n{gpu.BEGIN}\nold\n{gpu.END}\nbelow\n')
    words = ['--device', 'cpu', '--tiny', '--json', str(tmp_path / 'out' / 'gpu.json')]
    assert gpu.main([*words, '--page', str(page)]) == 1  # the tests' status
    found = json.loads((tmp_path / 'out' / 'gpu.json').read_text())
    assert [*found['parts']] == ['losses', 'retinanet', 'gfl', 'pspnet', 'tests']
    assert found['parts']['tests']['status'] == 1
    text = page.read_text()
    assert text.startswith(f'above\n{gpu.BEGIN}\ncpu, torch ')
    assert text.endswith(f'{gpu.END}\nbelow\n')
    assert '| CWD, logits 2x19x128x256, T=4 |' in text
    assert (
        '| gfl: one, 64x96, 2 | 250 ms | 250 ms | 1.020 (1.000 to 1.040) | 1.0 % | 0.90 |' in text
    )
    assert 'Not well: tests: status 1.' in text
    assert (
        text.split('above\n')[1].split(gpu.BEGIN)[1].split(gpu.END)[0].strip()
        in capsys.readouterr().out
    )


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_all_commands_are_understood(device, tmp_path):
    found = gpu.parts(device, False, tmp_path)
    for name in gpu.STEPS:
        assert stepped(found[name].command[4:]) == 0
    assert losses.parse_args(found['losses'].command[3:]).device == device
    measured = [part.limit for name, part in found.items() if name != 'tests']
    assert device == 'cpu' or sum(measured) < gpu.SECONDS


def test_what_takes_too_long_is_ended(tmp_path):
    part = gpu.Part([gpu.sys.executable, '-c', 'import time; time.sleep(60)'], 60)
    found = gpu.run(part, 0.2)
    assert found['status'] is None
    assert found['seconds'] < 30
    text = gpu.tables(dict(device='cpu', torch='2', seconds=1, parts={'tests': found}))
    assert 'Not well: tests: its time was over.' in text


def test_asks_for_what_is_there(monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    for words, message in (
        ([], 'torch finds no GPU'),
        (['--device', 'cpu', '--only', 'none'], 'no part begins with none'),
    ):
        with pytest.raises(SystemExit, match='2'):
            gpu.main(words)
        assert message in capsys.readouterr().err
