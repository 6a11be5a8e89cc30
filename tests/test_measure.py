import pytest
import torch

from kd_dense.measure import peak_memory, ratio, spread, time_interleaved

MB = 1 << 20


def test_calls_take_turns_and_the_first_place_goes_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'abc'}
    seconds = time_interleaved(calls, rounds=3, warmup=0)
    assert ''.join(order) == 'abcbcacab'
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, b=3, c=3)


def test_warmup_is_not_timed_and_progress_is_told():
    order, told = [], []
    seconds = time_interleaved(
        {'a': lambda: order.append('a')}, 2, 3, progress=lambda *done: told.append(done)
    )
    assert (len(order), len(seconds['a'])) == (5, 2)
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_the_longer_takes_longer(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: clock[0])

    def takes(seconds):
        clock[0] += seconds

    calls = {'short': lambda: takes(1.0), 'long': lambda: takes(3.0)}
    seconds = time_interleaved(calls, rounds=3)
    assert seconds == dict(short=[1.0] * 3, long=[3.0] * 3)
    assert ratio(seconds['long'], seconds['short']) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize('arguments', [({}, 1, 1), ({'a': print}, 0, 1), ({'a': print}, 1, -1)])
def test_nothing_to_time(arguments):
    with pytest.raises(ValueError, match='expects calls, rounds >= 1'):
        time_interleaved(*arguments)


def test_spread_of_one_figure():
    assert spread([2.0]) == (2.0, 2.0, 2.0)


def test_peak_is_what_is_held_at_once():
    def one_after_the_other():
        for _ in range(3):
            torch.empty(MB)  # float32

    def together():
        return [torch.empty(MB) for _ in range(3)]

    assert peak_memory(one_after_the_other) == 4 * MB
    assert peak_memory(together) == 12 * MB


def test_peak_counts_what_is_kept_for_backward_and_leaves_out_what_was_there():
    weight = torch.ones(MB, requires_grad=True)

    def step():
        weight.grad = None
        weight.exp().exp().sum().backward()

    step()
    assert 8 * MB <= peak_memory(step) <= 17 * MB


def test_peak_counts_temporaries_within_an_operation():
    x = torch.ones(1, 1, 512, 512)
    held = 4 * x.numel()
    assert peak_memory(lambda: torch.nn.functional.unfold(x, 3, padding=1)) >= 9 * held
