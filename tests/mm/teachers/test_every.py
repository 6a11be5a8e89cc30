"""A teacher that runs in every second iteration."""

import pytest
from mmengine.logging import MessageHub

from tests.mm import toy


def losses(model, iteration):
    MessageHub.get_current_instance().update_info('iter', iteration)
    return toy.losses(model)


def build(**options):
    return toy.build(
        toy.distilled(
            student=toy.segmenter(dropout=0.0),
            teacher=dict(config=toy.segmenter(16), checkpoint=None, **options),
        )
    )


@pytest.fixture(autouse=True)
def hub():
    yield
    MessageHub.get_current_instance().runtime_info.pop('iter', None)


def test_terms_count_twice_in_every_second_iteration_and_else_are_nothing(monkeypatch):
    model, plain = build(every=2), build()
    weighed = losses(plain, 0)['loss_kd_logits']
    assert float(losses(model, 0)['loss_kd_logits']) == pytest.approx(2 * float(weighed))
    monkeypatch.setattr(type(model.kd_plan.teacher), 'run', pytest.fail)
    assert float(losses(model, 1)['loss_kd_logits']) == 0


def test_nobody_says_which_iteration_it_is():
    MessageHub.get_current_instance().runtime_info.pop('iter', None)
    with pytest.raises(RuntimeError, match='every=2 needs to know the iteration'):
        toy.losses(build(every=2))


@pytest.mark.parametrize('every', [0, True, 1.5, 'second'])
def test_a_number_that_is_none(every):
    with pytest.raises(ValueError, match='every expects a number >= 1'):
        build(every=every)
