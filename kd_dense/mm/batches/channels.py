"""How many channels the images of a model have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['input_channels']

COLOUR = 3
SIDE = 64  # of the images that are tried, in pixels
# What a layer calls the number of its input channels, and which dimension that is.
WIDTHS = {'in_channels': 1, 'num_features': 1, 'in_features': -1}


class _Reached(BaseException):
    """The images have come to a layer that says how many channels it takes."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__()
        self.expected, self.got = expected, got


def input_channels(model: nn.Module) -> int:
    """Find how many channels a model's images have.

    Several means tell it; one mean, or none, may belong to any number of channels. Then images
    of three channels are sent to the model's first layer, which does not run: of what it takes and
    of what it would have been given follows what the images ought to have had. (Something may
    have been done to them on the way, as cutting them into patches.)

    Args:
        model: A model of mmdet or mmseg; weights, mode and random state stay as they are.

    Returns:
        The number of channels; where no layer can be asked, that of the means, or 3.
    """
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    mean = getattr(getattr(preprocessor, 'data_preprocessor', preprocessor), 'mean', None)
    means = COLOUR if mean is None else int(mean.numel())
    if mean is not None and means > 1:
        return means
    return _of_first_layer(model) or means


@torch.no_grad()
def _of_first_layer(model: nn.Module) -> int | None:
    layers = [
        (module, name)
        for module in model.modules()
        for name in WIDTHS
        if not module._modules and isinstance(getattr(module, name, None), int)
    ]
    hooks = [module.register_forward_pre_hook(_asking(name)) for module, name in layers]
    parameter = next(model.parameters(), None)
    images = torch.zeros(
        1, COLOUR, SIDE, SIDE, device='cpu' if parameter is None else parameter.device
    )
    try:
        for run in _ways(model):
            try:
                run(images)
            except _Reached as layer:
                channels, rest = divmod(COLOUR * layer.expected, layer.got)
                return None if rest else channels
            except Exception:  # another way may reach it
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _asking(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            raise _Reached(getattr(layer, name), inputs[0].shape[WIDTHS[name]])

    return hook


def _ways(model: Any) -> Iterator[Callable[[Tensor], Any]]:
    """How images may get to the first layer of a model, or of a model within it."""
    for part in (model, *model.children()):
        for name in ('extract_feat', 'backbone'):
            if callable(getattr(part, name, None)):
                yield getattr(part, name)
    yield lambda images: model(images, None, mode='tensor')
