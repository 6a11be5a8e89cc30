"""A sampler whose batches hold as many pictures with labels, and as many without, each time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from kd_dense.mm.datasets.unlabelled import labelled_pictures
from kd_dense.registry import DATA_SAMPLERS

__all__ = ['RatioSampler', 'in_a_batch']


@DATA_SAMPLERS.register_module()
class RatioSampler(Sampler[int]):
    """Pictures of a ``kd_dense.Unlabelled`` data set, in batches of one ratio.

    Each batch has its pictures with labels first. Both kinds are shuffled for themselves; neither
    is repeated before all of its kind have been drawn. An epoch draws each picture with labels
    once, but for a last batch that is filled up with the first ones of the next round. All
    processes have batches alike, and as many.

    Args:
        dataset: The data set; mmengine's Runner gives it.
        batch_size: That of the dataloader, in each process.
        ratio: With labels to without, as ``(1, 3)``.
        infinite: Never end, as mmengine's InfiniteSampler, for a schedule of iterations.
        shuffle: Whether the order is random.
        seed: Of the order; the Runner gives it.

    Raises:
        ValueError: If a batch cannot be divided so, or there is no picture of one kind.

    Examples:
        >>> in_a_batch(8, (1, 3))
        (2, 6)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        ratio: Sequence[int] = (1, 1),
        infinite: bool = False,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        self.in_a_batch = in_a_batch(batch_size, ratio)
        labelled = torch.tensor(labelled_pictures(dataset), dtype=torch.bool)
        self.indices = [(labelled == kind).nonzero().flatten() for kind in (True, False)]
        for indices, count, what in zip(
            self.indices, self.in_a_batch, ('with', 'without'), strict=True
        ):
            if count and not len(indices):
                raise ValueError(
                    f'RatioSampler: there is no picture {what} labels among {len(labelled)}: '
                    'expected a data set of type kd_dense.Unlabelled, with beside=... for those '
                    'with labels'
                )
        self.rank, self.world_size = get_dist_info()
        self.infinite, self.shuffle = infinite, shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self._skipped = 0
        self._orders: dict[int, tuple[int, list[int]]] = {}

    @property
    def batches(self) -> int:
        """How many batches of this process an epoch has."""
        kind = 0 if self.in_a_batch[0] else 1
        at_once: int = self.in_a_batch[kind] * self.world_size
        return math.ceil(len(self.indices[kind]) / at_once)

    def __len__(self) -> int:
        return self.batches * sum(self.in_a_batch)

    def __iter__(self) -> Iterator[int]:
        batch, end = self.epoch * self.batches, (self.epoch + 1) * self.batches
        if self.infinite:
            batch, end = self._skipped, -1
        while batch != end:
            for kind, count in enumerate(self.in_a_batch):
                first = (batch * self.world_size + self.rank) * count
                yield from (self._at(kind, first + n) for n in range(count))
            batch += 1

    def _at(self, kind: int, position: int) -> int:
        """The picture at a position of the endless sequence of a kind."""
        turn, place = divmod(position, len(self.indices[kind]))
        known, order = self._orders.get(kind, (-1, []))
        if known != turn:
            order = self._order(kind, turn)
            self._orders[kind] = turn, order
        return order[place]

    def _order(self, kind: int, turn: int) -> list[int]:
        """All pictures of a kind, in the order of a turn."""
        indices = self.indices[kind]
        if not self.shuffle:
            return [*map(int, indices)]
        # Two numbers to a seed: other turns, and the other kind, are unrelated.
        random = torch.Generator().manual_seed(self.seed + 2_147_483_659 * (2 * turn + kind))
        return [*map(int, indices[torch.randperm(len(indices), generator=random)])]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def skip(self, num_samples: int) -> None:
        """Go on behind what a resumed training of iterations has seen, counted from its start."""
        self._skipped = num_samples // sum(self.in_a_batch)


def in_a_batch(batch_size: int, ratio: Sequence[int]) -> tuple[int, int]:
    """How many pictures of a batch have labels, and how many have none.

    Args:
        batch_size: Of one process.
        ratio: With labels to without.

    Raises:
        ValueError: If the batch cannot be divided so.
    """
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in ratio)
    if len(ratio) != 2 or not whole or sum(ratio) == 0:
        raise ValueError(
            'RatioSampler expects a ratio of pictures with labels to those without, as (1, 3), '
            f'got {ratio!r}'
        )
    total = sum(ratio)
    if batch_size < 1 or batch_size % total:
        near = -(-batch_size // total) * total or total
        raise ValueError(
            f'RatioSampler: a batch of {batch_size} cannot be divided '
            f'{ratio[0]}:{ratio[1]}; say batch_size={near}, in dataloader and sampler'
        )
    return batch_size * ratio[0] // total, batch_size * ratio[1] // total
