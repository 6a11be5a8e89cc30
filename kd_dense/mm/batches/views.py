"""A training set of which each picture has a fixed number of augmented views, and no others."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.registry import DATASETS as ROOT_DATASETS
from torch import Tensor

from kd_dense.mm.batches.two_views import OTHER
from kd_dense.mm.randomness import kept_random_state
from kd_dense.registry import DATASETS
from kd_dense.taps import tensors_in

__all__ = ['FixedViews', 'View', 'call_them_views', 'view_of']

KEY = 'kd_view'


class View(NamedTuple):
    """Which view of which picture a sample is.

    Attributes:
        picture: Index in the data set.
        number: Index of the view.
        pictures: How many pictures there are.
        views: How many views each of them has.
        digest: Of the pixels as the pipeline has made them, and of the size without padding.
    """

    picture: int
    number: int
    pictures: int
    views: int
    digest: str


@DATASETS.register_module()
class FixedViews:
    """Another data set, each of whose pictures is only ever seen in so many augmented views.

    Each time that a picture is asked for, one of its views is drawn, and the generators of random
    numbers of Python, NumPy and torch are seeded for it while the data set's own pipeline runs;
    then they are put back. What is drawn elsewhere, which view included, stays as random as it
    was. A teacher's maps can then be kept: see [`kd_dense.mm.teachers.cached.MapCache`][].

    All else that is asked of the data set it answers itself.

    Args:
        dataset: The data set, or its config.
        views: How many views each picture has.
        seed: Another one gives other views.

    Raises:
        ValueError: If ``views`` is not a positive number.

    Examples:
        >>> import random
        >>> class Noise:
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return random.random()
        >>> data = FixedViews(Noise(), views=3)
        >>> len(data), len({data[0] for _ in range(50)})
        (4, 3)
    """

    def __init__(self, dataset: Any, views: int, seed: int = 0) -> None:
        if not isinstance(views, int) or isinstance(views, bool) or views < 1:
            raise ValueError(f'FixedViews expects views as a number >= 1, got {views!r}')
        self.dataset = ROOT_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.view(index, random.randrange(self.views))

    def view(self, index: int, number: int) -> Any:
        """A certain view of a picture.

        Args:
            index: Of the picture.
            number: Of the view.
        """
        with kept_random_state():
            _seed_all(f'{self.seed} {index} {number}')
            data = self.dataset[index]
        sample: Any = data.get('data_samples') if isinstance(data, Mapping) else None
        if hasattr(sample, 'metainfo'):
            found = View(index, number, len(self), self.views, _digest(data['inputs'], sample))
            sample.set_metainfo({KEY: found})
        return data

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # of one that is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def view_of(sample: Any) -> View | None:
    """Which view a data sample is of, where it comes from [`FixedViews`][]."""
    found: View | None = getattr(sample, 'metainfo', {}).get(KEY)
    return found


def call_them_views(samples: Sequence[Any]) -> None:
    """Say of samples that each is the only view of its picture, and that there are no others."""
    for index, sample in enumerate(samples):
        sample.set_metainfo({KEY: View(index, 0, len(samples), 1, str(index))})


def _seed_all(text: str) -> None:
    number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), 'little')
    random.seed(number)
    np.random.seed(number % 2**32)
    # Not torch.manual_seed, which seeds GPUs as well: no pipeline runs there.
    torch.default_generator.manual_seed(number % 2**63)


def _digest(inputs: Any, sample: Any) -> str:
    found = blake2b(repr(sample.metainfo.get('img_shape')).encode(), digest_size=16)
    arrays = [inputs] if isinstance(inputs, np.ndarray) else map(Tensor.numpy, tensors_in(inputs))
    if isinstance(other := sample.get(OTHER), Tensor):  # what teachers are given
        arrays = [*arrays, other.numpy()]
    for pixels in arrays:
        found.update(f'{pixels.dtype}{pixels.shape}'.encode())
        found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()
