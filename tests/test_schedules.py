import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_dense.schedules import Schedule


def factors(schedule, end=10):
    return [round(schedule.factor(now, end), 6) for now in range(end)]


def test_constant():
    assert Schedule().constant
    assert factors(Schedule()) == [1.0] * 10


def test_warmup():
    assert factors(Schedule(warmup=4)) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]


def test_stop():
    assert factors(Schedule(stop=3)) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_start():
    assert factors(Schedule(start=3)) == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    values = factors(Schedule(start=2, warmup=2, decay='linear', stop=8))
    assert values == [0, 0, 0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]
    assert factors(Schedule(start=2 / 3, by_share=True), 9) == [0] * 6 + [1] * 3


@pytest.mark.parametrize('end', [10, 20, 300])
def test_shares_of_a_training_of_any_length(end):
    schedule = Schedule(warmup=0.2, stop=0.9, by_share=True)
    values = [schedule.factor(now, end) for now in range(end)]
    assert values.index(0.0, 1) == 0.9 * end
    assert values.index(1.0) == 0.2 * end
    assert schedule.factor(end // 10, end) == pytest.approx(0.5)


def test_linear_decay_ends_with_the_training():
    assert factors(Schedule(decay='linear')) == [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_cosine_decay_after_a_warmup():
    values = factors(Schedule(warmup=2, decay='cosine', stop=6))
    assert values == [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0, 0, 0, 0]


@given(
    start=st.floats(0, 50),
    warmup=st.floats(0, 50),
    decay=st.sampled_from([None, 'linear', 'cosine']),
    length=st.none() | st.floats(0, 50),
    now=st.integers(0, 100),
)
def test_is_a_fraction_and_nothing_before_the_start_or_after_the_stop(
    start, warmup, decay, length, now
):
    stop = None if length is None else start + warmup + length
    value = Schedule(warmup, decay, stop, start).factor(now, 100)
    assert 0 <= value <= 1
    if now < start or (stop is not None and now >= stop):
        assert value == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(decay='exp'), "decay 'linear', 'cosine' or None, got 'exp'"),
        (dict(warmup=-1), 'warmup and start >= 0, got -1 and 0'),
        (dict(start=-1), 'warmup and start >= 0, got 0 and -1'),
        (dict(warmup=5, stop=3), r'stop >= start \+ warmup, got stop=3, start=0 and warmup=5'),
        (dict(start=5, stop=3), r'stop >= start \+ warmup, got stop=3, start=5 and warmup=0'),
        (dict(stop=-1), r'stop >= start \+ warmup'),
        (dict(stop=2, by_share=True), 'add up to 1 at most, got start=0, warmup=0 and stop=2'),
        (dict(start=0.7, warmup=0.4, by_share=True), 'add up to 1 at most, got start=0.7'),
        (dict(stop=0.5, by_share=True, by_epoch=True), 'by_epoch or by_share, got both'),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)
