"""The pictures of Scenes: the same everywhere, with their ground truth."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from examples.quickstart import scenes


@pytest.mark.parametrize(
    ('split', 'index', 'mean', 'digits', 'labels'),
    [
        ('val', 3, 35.4085, [2], 'f9b06bc494c3b899'),
        ('train', 7, 58.5265, [8, 3], '85534ede317e7b26'),
    ],
)
def test_known_pictures(
    split: str, index: int, mean: float, digits: list[int], labels: str
) -> None:
    """A change of the drawing, or a library that draws otherwise, shows here."""
    scene = scenes.draw_scene(split, index)
    # JPEG decoders may differ by a grey level here and there
    assert scene.image.mean() == pytest.approx(mean, abs=0.05)
    assert scene.digits == digits
    assert hashlib.sha256(scene.labels.tobytes()).hexdigest()[:16] == labels


def test_seed_split_and_index_each_change_the_picture() -> None:
    pictures = [
        scenes.draw_scene(split, index, seed=seed).image.tobytes()
        for split, index, seed in (('val', 0, 0), ('val', 0, 1), ('val', 1, 0), ('test', 0, 0))
    ]
    assert len(set(pictures)) == 4


def test_splits_share_neither_digits_nor_photographs() -> None:
    digits = {split: {g.tobytes() for g in scenes._digits(split)[0]} for split in scenes.SPLITS}
    assert len(set.union(*digits.values())) == sum(len(d) for d in digits.values()) == 1797
    assert len(digits['train']) == 1200
    from sklearn.datasets import load_sample_images

    for number, photo in enumerate(load_sample_images().images):
        seen = scenes._photos('train')[2 * number]
        held_out = scenes._photos('val')[2 * number]
        assert np.array_equal(np.concatenate([seen, held_out], 1), photo)


@pytest.mark.parametrize('size', [48, 56, 96])
def test_objects_are_visible_and_do_not_overlap(size: int) -> None:
    count = 0
    for index in range(40):
        scene = scenes.draw_scene('train', index, size)
        assert scene.image.shape == (size, size, 3)
        assert 1 <= len(scene.digits) == len(scene.masks)
        assert sum(mask.astype(int) for mask in scene.masks).max() == 1
        assert all(mask.sum() > 40 for mask in scene.masks)
        count += len(scene.digits)
    assert count / 40 > (1 if size < 96 else 3)


def test_some_ink_is_ignored() -> None:
    shares = [(scenes.draw_scene('train', i).labels == scenes.IGNORED).mean() for i in range(100)]
    assert 0.002 < np.mean(shares) < 0.03


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="split is 'dev'; known are train, val, test"):
        scenes.draw_scene('dev', 0)
