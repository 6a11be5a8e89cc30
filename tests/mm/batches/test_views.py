"""A training set with a fixed number of views of each picture."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

from kd_dense.mm.batches.views import FixedViews, view_of
from kd_dense.mm.randomness import get_random_state
from tests.mm import toy


class Noisy(toy.SegScenes):
    """Draws from all generators."""

    def __getitem__(self, index):
        data = super().__getitem__(index)
        data['drawn'] = random.random(), float(np.random.rand()), float(torch.rand(()))
        return data


def test_a_picture_has_so_many_views_and_no_others():
    data = FixedViews(Noisy(), views=3)
    found = [data[1] for _ in range(40)]
    assert len({one['drawn'] for one in found}) == 3
    assert len({view_of(one['data_samples']).digest for one in found}) == 3
    by_number = {view_of(one['data_samples']).number: one['inputs'] for one in found}
    assert by_number.keys() == {0, 1, 2}
    assert torch.equal(data.view(1, 2)['inputs'], by_number[2])


@pytest.mark.parametrize('other', [dict(seed=1), dict(index=2), dict(number=1)])
def test_views_differ_between_pictures_numbers_and_seeds(other):
    chosen = dict(seed=0, index=1, number=0)

    def drawn(seed, index, number):
        return FixedViews(Noisy(), views=2, seed=seed).view(index, number)['drawn']

    ours, theirs = drawn(**chosen), drawn(**{**chosen, **other})
    assert all(a != b for a, b in zip(ours, theirs, strict=True))


def test_the_generators_are_where_they_were():
    data = FixedViews(Noisy(), views=2)
    before = get_random_state()
    data.view(0, 1)
    after = get_random_state()
    assert after['python'] == before['python']
    assert torch.equal(after['numpy'][1], before['numpy'][1])
    assert torch.equal(after['torch'], before['torch'])


def test_what_a_sample_says_of_its_view():
    data = FixedViews(toy.SegScenes(length=5), views=2)
    view = view_of(data.view(3, 1)['data_samples'])
    assert view[:4] == (3, 1, 5, 2)
    assert view_of(toy.SegScenes()[0]['data_samples']) is None


def test_the_digest_tells_a_pixel_and_the_size_without_padding():
    data = FixedViews(toy.SegScenes(augment=False), views=1)
    before = view_of(data[0]['data_samples']).digest
    data.images[0, 1, 2, 3] ^= 1
    changed = view_of(data[0]['data_samples']).digest
    data.images[0, 1, 2, 3] ^= 1
    assert view_of(data[0]['data_samples']).digest == before != changed


def test_all_else_is_asked_of_the_data_set_itself():
    config = dict(type='kd_dense.FixedViews', views=2, dataset=toy.SegScenes())
    data = pickle.loads(pickle.dumps(DATASETS.build(config)))
    assert data.metainfo['classes'] == tuple('abcde')
    assert len(data) == 8
    with pytest.raises(AttributeError, match='full_init'):
        data.full_init()


@pytest.mark.parametrize('views', [0, True, 2.0, None])
def test_a_number_of_views_that_is_none(views):
    with pytest.raises(ValueError, match='views as a number >= 1'):
        FixedViews(toy.SegScenes(), views=views)
