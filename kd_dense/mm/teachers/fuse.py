"""Fold batch norms of a frozen model into the convolutions in front of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ['fuse_norms']


def fuse_norms(model: nn.Module, kept: Collection[str] = ()) -> int:
    """Fold each batch norm that stands right behind a convolution into that.

    Which norm is behind which convolution is read off the order of the children of a module, as
    `mmcv.cnn.utils.fuse_conv_bn` does; where a module calls them in another order, the result is
    another function, so compare its maps before and after.

    Args:
        model: In eval mode; it is changed. A norm that was folded becomes an identity.
        kept: Convolutions whose own output is wanted.

    Returns:
        How many norms were folded.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> fuse_norms(model), model[1]
        (1, Identity())
    """
    # A convolution that several places share, each with a norm of its own, cannot hold them all.
    places = Counter(id(part) for _, part in model.named_modules(remove_duplicate=False))
    count = 0
    for path, parent in [*model.named_modules()]:
        children = [*parent.named_children()]
        for (first, conv), (second, norm) in pairwise(children):
            name = f'{path}.{first}' if path else first
            fits = (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, _BatchNorm)
                and norm.num_features == conv.out_channels
                and norm.track_running_stats
            )
            if not fits or name in kept or places[id(conv)] > 1 or places[id(norm)] > 1:
                continue
            parent._modules[first] = fuse_conv_bn_eval(conv, norm)
            parent._modules[second] = nn.Identity()
            count += 1
    return count
