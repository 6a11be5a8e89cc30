"""Teachers from torch.hub: a net that a repository builds, whose code is run for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_dense.mm.configs import RequestError
from kd_dense.mm.teachers.foreign import NET, ForeignModel, not_fetched
from kd_dense.registry import MODELS
from kd_dense.taps import near_names

__all__ = ['TorchHubModel']

PREFIX = 'torchhub::'


@MODELS.register_module()
class TorchHubModel(ForeignModel):
    """A net of ``torch.hub``, as a teacher of features.

    The code of the repository is fetched and run: name only what you trust.

    Args:
        repo: As ``'facebookresearch/dinov2'``; or a folder, where ``source`` is ``'local'``.
        model: An entry of its ``hubconf.py``.
        mean: See [`kd_dense.mm.teachers.foreign.ForeignModel`][].
        std: See there.
        source: ``'github'`` or ``'local'``.
        channel_order: See there, as all that follows.
        scale: See there.
        size_divisor: See there.
        input_size: See there.
        method: See there.
        arguments: See there.
        out_indices: See there.
        options: What the entry is called with.

    Raises:
        RequestError: If there is no such entry.
        FileNotFoundError: If the repository cannot be fetched.
    """

    def __init__(
        self,
        repo: str,
        model: str,
        mean: Sequence[float],
        std: Sequence[float],
        source: Literal['github', 'local'] = 'github',
        channel_order: str = 'rgb',
        scale: float = 255.0,
        size_divisor: int = 1,
        input_size: Sequence[int] | None = None,
        method: str = 'forward',
        arguments: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        self.entry = dict(repo_or_dir=repo, model=model, source=source, **options)
        super().__init__(
            _load(self.entry, pretrained=False),
            mean,
            std,
            channel_order,
            scale,
            size_divisor,
            input_size,
            method,
            arguments,
            out_indices,
        )

    def read_weights(self, source: str) -> Mapping[str, Tensor]:
        """The weights that the entry loads, or those of a checkpoint.

        Args:
            source: ``'torchhub::NAME'`` for the first; or path or address.

        Raises:
            FileNotFoundError: If they cannot be fetched, or there is no such file.
            ValueError: If there are none.
        """
        if not source.startswith(PREFIX):
            return super().read_weights(source)
        state = _load(self.entry, pretrained=True).state_dict()
        return {f'{NET}{name}': value for name, value in state.items()}


def _load(entry: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """Build a net; entries that take no ``pretrained`` load their weights always."""
    repo, name, source = entry['repo_or_dir'], entry['model'], entry['source']
    try:
        try:
            net = torch.hub.load(**entry, pretrained=pretrained, trust_repo=True)
        except TypeError as error:
            if 'pretrained' not in str(error):
                raise
            net = torch.hub.load(**entry, trust_repo=True)
    except OSError as error:
        raise not_fetched(f'{PREFIX}{repo}', error) from error
    except RuntimeError as error:
        if 'Cannot find callable' not in str(error):
            raise
        known = torch.hub.list(repo, trust_repo=True) if source == 'github' else []
        text = f', {near_names(name, known)}' if known else ' in its hubconf.py'
        raise RequestError(f'{repo} has no entry {name!r}{text}') from error
    if not isinstance(net, nn.Module):
        raise RequestError(f'{name!r} of {repo} is no net, but a {type(net).__name__}')
    return net
