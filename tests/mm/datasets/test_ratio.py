"""`kd_dense.RatioSampler`: batches with as many labelled pictures each."""

from itertools import islice

import pytest

from kd_dense.mm.datasets.ratio import RatioSampler, in_a_batch
from kd_dense.mm.datasets.unlabelled import Unlabelled
from tests.mm import toy

LABELLED, UNLABELLED = 5, 12


@pytest.fixture
def pictures():
    return Unlabelled(toy.SegScenes(UNLABELLED), beside=toy.SegScenes(LABELLED))


def batches(sampler, size, count=None):
    drawn = [*islice(sampler, None if count is None else size * count)]
    return [drawn[i : i + size] for i in range(0, len(drawn), size)]


def of_rank(monkeypatch, rank, *args, **options):
    monkeypatch.setattr('kd_dense.mm.datasets.ratio.get_dist_info', lambda: (rank, 2))
    return RatioSampler(*args, seed=0, **options)


@pytest.mark.parametrize(('size', 'ratio', 'split'), [(4, (1, 1), (2, 2)), (8, (1, 3), (2, 6)),
                                                      (3, (1, 2), (1, 2))])  # fmt: skip
def test_every_batch_has_the_ratio(pictures, size, ratio, split):
    for batch in batches(RatioSampler(pictures, size, ratio, seed=0), size):
        assert [index < LABELLED for index in batch] == [True] * split[0] + [False] * split[1]


def test_an_epoch_draws_all_labels_and_goes_on_with_the_others(pictures):
    sampler = RatioSampler(pictures, 4, seed=0)
    assert len(sampler) == 3 * 4  # 5 pictures, 2 in each
    drawn = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        drawn += batches(sampler, 4)
    assert len(drawn) == 2 * 3
    with_labels = [index for batch in drawn for index in batch[:2]]
    assert sorted(with_labels[:5]) == sorted(with_labels[5:10]) == [*range(5)]
    without = [index for batch in drawn for index in batch[2:]]
    assert sorted(without) == [*range(LABELLED, LABELLED + UNLABELLED)]  # none is drawn twice
    assert with_labels[:5] != with_labels[5:10]  # another order


def test_the_same_seed_draws_the_same(pictures):
    one, other, third = (batches(RatioSampler(pictures, 4, seed=s), 4) for s in (0, 0, 1))
    assert one == other != third


def test_without_shuffling(pictures):
    assert batches(RatioSampler(pictures, 4, shuffle=False, seed=0), 4)[0] == [0, 1, 5, 6]


def test_infinite_and_resumed(pictures):
    whole = batches(RatioSampler(pictures, 4, infinite=True, seed=0), 4, 20)
    resumed = RatioSampler(pictures, 4, infinite=True, seed=0)
    resumed.skip(7 * 4)
    assert batches(resumed, 4, 13) == whole[7:]
    assert len(whole) == 20


def test_two_processes_share_the_pictures(pictures, monkeypatch):
    ranks = [of_rank(monkeypatch, rank, pictures, 4) for rank in (0, 1)]
    drawn = [batches(sampler, 4) for sampler in ranks]
    assert len(drawn[0]) == len(drawn[1]) == 2
    with_labels = [i for pair in zip(*drawn, strict=True) for batch in pair for i in batch[:2]]
    assert sorted(with_labels[:5]) == [*range(5)]


def test_only_pictures_of_one_kind():
    alone = Unlabelled(toy.SegScenes(3))
    assert sorted(RatioSampler(alone, 1, (0, 1), seed=0)) == [0, 1, 2]
    with pytest.raises(ValueError, match='there is no picture with labels among 3'):
        RatioSampler(alone, 2)
    with pytest.raises(ValueError, match=r'no picture without labels among 3: .*beside'):
        RatioSampler(toy.SegScenes(3), 2)


@pytest.mark.parametrize(
    ('size', 'ratio', 'message'),
    [
        (4, (1, 2), r'a batch of 4 cannot be divided 1:2; say batch_size=6'),
        (0, (1, 1), 'say batch_size=2'),
        (4, (1, -1), r'expects a ratio .* got \(1, -1\)'),
        (4, (0, 0), 'expects a ratio'),
        (4, (0.5, 0.5), 'expects a ratio'),
        (4, (1, 1, 1), 'expects a ratio'),
    ],
)
def test_impossible_ratios(size, ratio, message):
    with pytest.raises(ValueError, match=message):
        in_a_batch(size, ratio)
