"""The benchmark of the losses, on inputs so small that nothing is learnt from its figures."""

import json

import pytest
import torch

from benchmarks import losses, scaling
from benchmarks.case import Case, Pair, check_same, forward_backward

SMALL = ['--small', '--rounds', '1']
BY_NAME = {case.name: case for case in losses.CASES}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('name', BY_NAME)
def test_ours_and_the_reference_give_the_same(name):
    case = BY_NAME[name]
    pair = case.make('cpu', True)
    if case.bound or pair.reference is None:
        pair.ours()
        return
    check_same(name, pair)
    assert pair.ours()[0].any()


def test_names_are_not_used_twice():
    assert len(BY_NAME) == len(losses.CASES)
    assert len({curve.name for curve in scaling.CURVES}) == len(scaling.CURVES)


@pytest.mark.parametrize(
    ('ours', 'message'),
    [
        (lambda x: 2 * x.sum(), 'result 0 of ours differs'),
        (lambda x: (x - x.detach()).sum() * 2 + x.detach().sum(), 'result 1 of ours differs'),
        (lambda x: x.sum() * float('nan'), 'result 0 of ours differs'),
    ],
)
def test_another_value_or_gradient_is_found(ours, message):
    x = torch.ones(3, requires_grad=True)
    calls = [forward_backward(lambda f=f: f(x), [x]) for f in (ours, torch.sum)]
    with pytest.raises(AssertionError, match=message):
        check_same('sum', Pair(*calls))


def test_other_results_are_found():
    x = torch.ones(3)
    for other, message in (([x, x], '2 results'), ([x[:2]], r'is \(2,\)')):
        with pytest.raises(AssertionError, match=message):
            check_same('sum', Pair(lambda other=other: other, lambda: [x]))


def run(tmp_path, *arguments):
    status = losses.main([*SMALL, '--json', str(tmp_path / 'out.json'), *arguments])
    return status, json.loads((tmp_path / 'out.json').read_text())['results']


def test_command_writes_what_it_measured(tmp_path, capsys):
    _, results = run(tmp_path, '--only', 'skd-pair', 'cwd-logits')
    assert set(results) == {'skd-pair', 'skd-pair-nodes', 'cwd-logits', 'cwd-logits-bound'}
    found = results['skd-pair']
    for side in ('ours', 'reference'):
        assert found[side]['median'] > 0
        assert len(found[side]['all']) == 1
        assert found[side]['peak_bytes'] > 0
    assert found['memory'] == found['ours']['peak_bytes'] / found['reference']['peak_bytes']
    assert 'skd-pair' in capsys.readouterr().out


def test_goals_decide(tmp_path, monkeypatch, capsys):
    """Times are made up, twice as long for the reference; memory is measured."""
    monkeypatch.setattr(
        losses, 'time_interleaved',
        lambda calls, rounds, device: {n: [1.0 + (n != 'ours')] * rounds for n in calls},
    )  # fmt: skip
    x = torch.ones(1000)
    pair = Pair(lambda: [x + 0], lambda: [x + 0 + 0])

    def case(**goals):
        return Case('made-up', '', lambda device, small: pair, **goals)

    for goals, status in (
        (dict(goal_speed=2.0, goal_memory=0.51), 0),
        (dict(goal_speed=2.1), 1),
        (dict(goal_memory=0.49), 1),
        ({}, 0),
    ):
        monkeypatch.setattr(losses, 'CASES', [case(**goals)])
        assert run(tmp_path)[0] == status, goals
        written = capsys.readouterr().out
        assert ('missed' in written) == bool(status)
        assert ('met' in written) == (len(goals) == 2)


def test_growth_of_cost(tmp_path, capsys):
    picture = tmp_path / 'growth.png'
    status, results = run(tmp_path, '--scaling', '--only', 'cwd', 'fgd', '--picture', str(picture))
    assert status == 0
    assert set(results) == {'cwd positions', 'cwd classes', 'fgd positions', 'fgd boxes'}
    assert results['cwd positions']['sizes'] == [64, 128, 256]
    assert results['fgd boxes']['sizes'] == [16, 32, 64]
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert 'exponent' in capsys.readouterr().out


@pytest.mark.parametrize('curve', scaling.CURVES, ids=lambda curve: curve.name)
def test_memory_is_at_most_proportional(curve):
    """Three sizes, each twice the one before it."""
    found = scaling.measure_growth(curve, 1, 'cpu', small=True)
    first, second, third = found['peak_bytes']
    assert third <= 2.02 * second <= 2.02**2 * first


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--only', 'nothing'], 'nothing begins with nothing; there are attention-'),
        (['--picture', 'x.png'], 'add --scaling'),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        losses.main(arguments)
    assert message in capsys.readouterr().err
