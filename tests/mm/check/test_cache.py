"""What keeping the teacher's maps would save, said beforehand."""

import pytest

from kd_dense.mm.check.check import CHECKS, Check
from kd_dense.mm.check.finding import ERROR, OK, WARNING
from tests.mm.check.checking import of, run

BYTES = 11 * 6 * 6 * 2  # logits of 11 classes for 48x48 pixels


@pytest.fixture(autouse=True)
def times(monkeypatch):
    """A step takes so long as told, and else only what this check needs is looked at."""

    def measured(subject):
        subject.say(OK, 'a step', seconds=found['ours'], seconds_alone=1.0)

    found = dict(ours=2.08)
    kept = {'model', 'data', 'cache'}
    checks = [
        one if one.name in kept else Check('cost', measured)
        for one in CHECKS
        if one.name in {*kept, 'cost'}
    ]
    monkeypatch.setattr('kd_dense.mm.check.check.CHECKS', checks)
    return found


def findings(recipe, tmp_path, **cache):
    config = recipe('seg_cwd')
    config.model.terms.pop('features')
    if cache:
        config.model.teacher.cache = dict(folder=str(tmp_path / 'maps'), **cache)
    return run(config)


def test_of_a_recipe_that_keeps_maps(recipe, tmp_path):
    found = of(findings(recipe, tmp_path, views=5), 'cache')
    assert found.status == OK
    assert '8 pictures in 5 views; once they are there, steps are at most 2.08 times' in (
        found.message
    )
    assert found.figures['map_bytes'] == BYTES
    assert found.figures['gigabytes'] == pytest.approx(BYTES * 8 * 5 / 1e9)
    assert not (tmp_path / 'maps').exists()


def test_of_a_recipe_that_could(recipe, tmp_path, times):
    found = of(findings(recipe, tmp_path), 'cache')
    assert found.status == OK
    assert 'would be at most 2.08 times as fast' in found.message
    times['ours'] = 1.1
    assert not [f for f in findings(recipe, tmp_path) if f.check == 'cache']


def test_maps_that_need_too_much_room(recipe, tmp_path):
    found = of(findings(recipe, tmp_path, views=5, gigabytes=1e-6), 'cache')
    assert found.status == ERROR
    assert 'more than gigabytes=1e-06' in found.message


def test_a_cache_that_saves_nothing(recipe, tmp_path, times):
    times['ours'] = 1.05
    assert of(findings(recipe, tmp_path, views=5), 'cache').status == WARNING
