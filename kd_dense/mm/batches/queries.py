"""What decoders yield for their queries, in the one form of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ['as_queries', 'own_queries']

ALL = slice(None)


def as_queries(maps: Sequence[Tensor], own: slice = ALL) -> list[Tensor]:
    """Class logits of each layer of a decoder, then boxes or masks of each.

    Args:
        maps: What a head of mmdet yields: two tensors that begin with the layers,
            ``(L, N, Q, ...)``; or, as Mask2Former, tensors ``(N, Q, ...)`` for each layer.
        own: Which queries.

    Returns:
        Tensors ``(N, Q, ...)``.
    """
    if maps[0].dim() == 4:
        maps = [layer for x in maps for layer in x.unbind()]
    return [x[:, own] for x in maps]


def own_queries(model: Any, tap: str) -> slice:
    """The queries of a model that it has in tests as well.

    In training, DINO puts queries in front that are to be rid of noise, and DDQ dense ones behind
    these.

    Args:
        model: A model, behind its forward pass.
        tap: The tap on its head.
    """
    owner = model
    for part in tap.partition('[')[0].split('.')[:-1]:
        owner = getattr(owner, part)
    if not hasattr(owner, 'dn_query_generator'):
        return ALL
    distinct = getattr(owner, 'cache_dict', {}).get('dis_query_info')
    if distinct is not None:
        start, count = distinct
        return slice(start, start + count)
    return slice(-owner.num_queries, None)
