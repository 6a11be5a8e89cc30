"""Teachers from elsewhere: any net that turns images into maps, as a model of this house."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

from mmengine.model import BaseModel, ImgDataPreprocessor
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.adapters import map_size, of_one_stride, tokens_to_map
from kd_dense.mm.configs import ELSEWHERE, RequestError
from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.registry import MODELS
from kd_dense.taps import near_names, tensors_in

__all__ = [
    'NET',
    'ForeignModel',
    'Images',
    'check_fields',
    'config_of',
    'is_foreign',
    'not_fetched',
]

# What `type` a teacher may have, and the model that stands for it.
TYPES = {**ELSEWHERE, 'torchhub': 'kd_dense.TorchHubModel'}
NET = 'backbone.net.'  # what the names of its weights begin with
ORDERS = ('rgb', 'bgr')
# Tokens that may stand in front of those of an image: for classes, and registers.
MOST_EXTRA = 32

Size = tuple[int, int]


@MODELS.register_module()
class ForeignModel(BaseModel):
    """A net from elsewhere, with what the models of OpenMMLab have: a preprocessor, a backbone.

    Its backbone returns maps ``(N, C, H, W)``, the largest first: of each size the last that the
    net yields, which of a plain vision transformer is one. Tokens ``(N, L, C)`` become maps,
    without those of a class and of registers. Taps are ``backbone``, ``backbone[-1]``, and what
    lies within the net below ``backbone.net``.

    Args:
        module: The net, ``images -> maps``: a tensor, or tensors in lists and dicts, as
            ``ModelOutput`` of transformers is; or the config of one that is registered.
        mean: Of the channels of its images, after they are divided by ``scale``.
        std: Their standard deviation.
        channel_order: ``'rgb'`` or ``'bgr'``.
        scale: The pixels, of 0 to 255, are divided by it first.
        size_divisor: Its images need sides that are multiples of this, as of the size of a patch.
            They are resized to the next ones, so that its maps show the whole image.
        input_size: Height and width, where it takes no other images. They are made as large as
            fits, keeping their shape but for the rounding to multiples, and padded at the right
            and the bottom; what the maps show of the padding is cut off.
        method: The method that is called, as ``'forward_features'``.
        arguments: What it is called with, beside the images.
        out_indices: Which of the maps that it yields, in their order; by default of each size the
            last.

    Raises:
        ValueError: If mean and std do not fit the channels, or a value is none of these.

    Examples:
        >>> import torch
        >>> net = nn.Conv2d(3, 8, 16, stride=16)
        >>> model = ForeignModel(net, mean=(0.5,) * 3, std=(0.5,) * 3, size_divisor=16)
        >>> [tuple(x.shape) for x in model.extract_feat(torch.zeros(2, 3, 30, 64))]
        [(2, 8, 2, 4)]
    """

    pick: Callable[[Any], Iterable[Tensor]] = staticmethod(tensors_in)

    def __init__(
        self,
        module: nn.Module | Mapping[str, Any],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: str = 'rgb',
        scale: float = 255.0,
        size_divisor: int = 1,
        input_size: Sequence[int] | None = None,
        method: str = 'forward',
        arguments: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        if mean is None or std is None:
            raise ValueError(
                'a net from elsewhere does not say how its images are normalised: say '
                'mean=(...) and std=(...), with scale and channel_order where they are not 255 '
                'and rgb'
            )
        if channel_order not in ORDERS:
            raise ValueError(f'channel_order expects one of {ORDERS}, got {channel_order!r}')
        if not isinstance(size_divisor, int) or size_divisor < 1:
            raise ValueError(f'size_divisor expects a positive integer, got {size_divisor!r}')
        means, stds = ([scale * x for x in values] for values in (mean, std))
        if len(means) != len(stds) or len(means) not in (1, 3):
            raise ValueError(
                f'mean and std expect a value for each channel, 1 or 3, got {len(means)} and '
                f'{len(stds)}'
            )
        colour = len(means) == 3
        super().__init__(
            ImgDataPreprocessor(means, stds, bgr_to_rgb=colour and channel_order == 'rgb')
        )
        net = module if isinstance(module, nn.Module) else MODELS.build(module)
        if not callable(getattr(net, method, None)):
            raise ValueError(f'{type(net).__name__} has no method {method!r}')
        size = None if input_size is None else (int(input_size[0]), int(input_size[1]))
        self.backbone = Images(
            net, size_divisor, size, method, arguments or {}, out_indices, self.pick
        )

    def extract_feat(self, inputs: Tensor) -> list[Tensor]:
        """The maps of a batch ``(N, C, H, W)``, normalised."""
        maps: list[Tensor] = self.backbone(inputs)
        return maps

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """The maps; a teacher from elsewhere predicts nothing."""
        if mode != 'tensor':
            raise NotImplementedError(f'{type(self).__name__} yields features, and no {mode!r}')
        return self.extract_feat(inputs)

    def read_weights(self, source: str) -> Mapping[str, Tensor]:
        """The weights of a checkpoint, by the names that this model has for them.

        Args:
            source: Path or address.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or holds anything but weights.
        """
        state = read_checkpoint(source)
        return {f'{NET}{name}': value for name, value in state.items()}


class Images(nn.Module):
    """Gives a net images of a size that it takes, and returns its maps of them.

    Args:
        net: The net.
        divisor: What the sides of its images are multiples of.
        size: Their size, if it takes no other one.
        method: The method that is called.
        arguments: With what.
        out_indices: Which of its maps are returned.
        pick: The tensors among what it returns that may be maps, in their order.
    """

    def __init__(
        self,
        net: nn.Module,
        divisor: int,
        size: Size | None,
        method: str,
        arguments: Mapping[str, Any],
        out_indices: Sequence[int] | None,
        pick: Callable[[Any], Iterable[Tensor]],
    ) -> None:
        super().__init__()
        self.net = net
        self.divisor, self.size = divisor, size
        self.method, self.arguments = method, dict(arguments)
        self.out_indices, self.pick = out_indices, pick

    def forward(self, inputs: Tensor) -> list[Tensor]:
        shown, whole = self._sizes((inputs.shape[-2], inputs.shape[-1]))
        images = inputs
        if tuple(inputs.shape[-2:]) != shown:
            images = F.interpolate(images.float(), shown, mode='bilinear', antialias=True)
            images = images.to(inputs.dtype)
        if shown != whole:
            images = F.pad(images, (0, whole[1] - shown[1], 0, whole[0] - shown[0]))
        call: Callable[..., Any] = getattr(self.net, self.method)
        if self.method == 'forward':
            call = self.net  # where compiled code and taps are
        try:
            output = call(images, **self.arguments)
        except Exception as error:  # whatever a net raises
            raise RuntimeError(
                f'the teacher {type(self.net).__name__} does not take images of '
                f'{whole[0]}x{whole[1]} pixels ({type(error).__name__}: {error}); if it needs '
                'multiples of a patch, say size_divisor=PATCH, and if it takes one size alone, '
                'input_size=(HEIGHT, WIDTH)'
            ) from error
        found = [self._as_map(x, whole) for x in self.pick(output)]
        maps = [x for x in found if x is not None]
        if not maps:
            shapes = [tuple(x.shape) for x in tensors_in(output)]
            raise RuntimeError(
                f'{type(self.net).__name__}.{self.method} yields no maps of its images of '
                f'{whole[0]}x{whole[1]} pixels, but {shapes}: name a method that does, as '
                "method='forward_features', or a size_divisor that is the size of its patches"
            )
        if self.out_indices is None:
            last = {tuple(x.shape[-2:]): x for x in maps}
            maps = [last[size] for size in sorted(last, reverse=True)]
        else:
            maps = [maps[index] for index in self.out_indices]
        return maps if shown == whole else [_cut(x, shown, whole) for x in maps]

    def _sizes(self, image: Size) -> tuple[Size, Size]:
        """The size that images are resized to, and that which they are padded to."""
        if self.size is None:
            shown = tuple(-(-side // self.divisor) * self.divisor for side in image)
            return (shown[0], shown[1]), (shown[0], shown[1])
        ratio = min(most / side for most, side in zip(self.size, image, strict=True))
        shown = tuple(
            min(max(round(ratio * side / self.divisor), 1) * self.divisor, most)
            for side, most in zip(image, self.size, strict=True)
        )
        return (shown[0], shown[1]), self.size

    def _as_map(self, x: Tensor, size: Size) -> Tensor | None:
        """What shows the image, as a map ``(N, C, H, W)``; None for anything else."""
        if x.dim() == 3:
            grid = self._grid(x.shape[1], size)
            return None if grid is None else tokens_to_map(x, grid)
        if x.dim() != 4:
            return None
        if of_one_stride(x.shape[2:], size):
            return x
        return x.permute(0, 3, 1, 2) if of_one_stride(x.shape[1:3], size) else None

    def _grid(self, tokens: int, size: Size) -> Size | None:
        """Height and width of the map that tokens are."""
        grid = size[0] // self.divisor, size[1] // self.divisor
        if self.divisor > 1 and 0 <= tokens - grid[0] * grid[1] <= MOST_EXTRA:
            return grid
        return map_size(tokens, size)


def _cut(x: Tensor, shown: Size, whole: Size) -> Tensor:
    """What a map of padded images shows of the images themselves."""
    height, width = (
        max(round(side * part / all_), 1)
        for side, part, all_ in zip(x.shape[-2:], shown, whole, strict=True)
    )
    return x[..., :height, :width]


def predicts(model: nn.Module) -> bool:
    """Whether a teacher predicts something, and not features alone."""
    return not isinstance(model, ForeignModel)


def check_fields(fields: Iterable[str]) -> None:
    """Name a field that no module takes.

    Raises:
        RequestError: If there is one.
    """
    known = [*signature(ForeignModel.__init__).parameters][1:]
    for name in fields:
        if name not in known:
            raise RequestError(f'teacher: unknown field {name!r}, {near_names(name, known)}')


def is_foreign(fields: Mapping[str, Any]) -> bool:
    """Whether these are the fields of a teacher from elsewhere."""
    return 'type' in fields or 'module' in fields


def config_of(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a teacher from elsewhere is as one with a config.

    Args:
        fields: ``type`` and ``model``, or ``module``; what the model of that type takes;
            ``checkpoint``, ``strict`` and ``pretrained``. Others come back as they are.

    Returns:
        ``config``, ``checkpoint`` and ``strict``.

    Raises:
        RequestError: If there is no such type, or it takes no such field.

    Examples:
        >>> config_of(dict(type='timm', model='resnet18', pretrained=False))['checkpoint'] is None
        True
    """
    if not is_foreign(fields):
        return fields
    own = dict(fields)
    kept: dict[str, Any] = {
        name: own.pop(name) for name in ('checkpoint', 'strict') if name in own
    }
    kind = own.pop('type', None)
    if kind is not None and kind not in TYPES:
        raise RequestError(
            f'teacher: there is no type {kind!r}, {near_names(str(kind), TYPES)}; a model of '
            'OpenMMLab is given as config=dict(type=...)'
        )
    if kind is None:
        check_fields(own)
    config: dict[str, Any] = dict(model=dict(type=TYPES.get(kind, 'kd_dense.ForeignModel'), **own))
    if kind is not None:
        if not own.pop('pretrained', True):
            kept.setdefault('checkpoint', None)
        name = own.get('model') or (own.get('config') or {}).get('model_type')
        source = f'{kind}::{name}'
        config = dict(name=source, model=dict(type=TYPES[kind], **own), model_path=source)
    return {'config': config, **kept}


def not_fetched(source: str, error: Exception) -> FileNotFoundError:
    """The error where a library could not get weights or a config."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    return FileNotFoundError(
        f'{source} cannot be fetched ({type(error).__name__}: {text[0]}): is there a network? '
        "Fetch it where there is one, and copy the library's cache; or give the weights as "
        "checkpoint='FILE'; or checkpoint=None for an untrained teacher"
    )
