"""Teachers from timm: any of its models, by name, with its weights and its normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.mm.configs import RequestError
from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.mm.stack.torchvision import import_timm
from kd_dense.mm.teachers.foreign import NET, ForeignModel, not_fetched
from kd_dense.mm.wording import listed
from kd_dense.registry import MODELS
from kd_dense.taps import near_names

__all__ = ['TimmModel']

PREFIX = 'timm::'


@MODELS.register_module()
class TimmModel(ForeignModel):
    """A model of timm, as a teacher of features.

    Mean and standard deviation are those that timm has for its weights. Vision transformers run
    on images of all sizes that are multiples of their patches; a model that runs at one size alone
    is given that.

    Args:
        model: Its name in timm, as ``'vit_small_patch16_dinov3.lvd1689m'``, or ``hf-hub:...`` and
            ``local-dir:...``, as timm has them.
        out_indices: Which of what ``forward_intermediates`` of the model yields; by default of
            each stride the last.
        size_divisor: See [`kd_dense.mm.teachers.foreign.ForeignModel`][].
        input_size: See there.
        options: What ``timm.create_model`` takes beyond.

    Raises:
        RequestError: If timm is not installed, there is no such model, or it takes no such option.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] | None = None,
        size_divisor: int | None = None,
        input_size: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        self.timm_name, self.timm_options = model, options
        net, dynamic = _create(model, options)
        config, strides = net.pretrained_cfg, [info['reduction'] for info in _feature_info(net)]
        plain = len(set(strides)) == 1
        if input_size is None and config.get('fixed_input_size') and not dynamic:
            input_size = options.get('img_size') or config['input_size'][1:]
            input_size = [input_size] * 2 if isinstance(input_size, int) else input_size
        if size_divisor is None:
            patch = getattr(getattr(net, 'patch_embed', None), 'patch_size', 1)
            size_divisor = patch if isinstance(patch, int) else max(patch)
            if plain or input_size is not None:
                size_divisor = max(strides)
        last = {stride: index for index, stride in enumerate(strides)}
        chosen = [*last.values()] if out_indices is None else [*out_indices]
        if not all(-len(strides) <= index < len(strides) for index in chosen):
            raise RequestError(
                f'out_indices: {model!r} of timm yields {len(strides)} maps, 0 to '
                f'{len(strides) - 1}, got {tuple(chosen)}'
            )
        chosen = [index % len(strides) for index in chosen]
        indices = sorted({*chosen})  # timm returns them so
        super().__init__(
            net,
            config['mean'],
            config['std'],
            size_divisor=size_divisor,
            input_size=input_size,
            method='forward_intermediates',
            arguments=dict(
                # What a plain transformer ends with is made to be normalised.
                indices=indices, norm=plain, output_fmt='NCHW', intermediates_only=True
            ),
            out_indices=None if out_indices is None else [indices.index(one) for one in chosen],
        )  # fmt: skip

    def read_weights(self, source: str) -> Mapping[str, Tensor]:
        """The weights that timm has for the model, or those of a checkpoint.

        Args:
            source: ``'timm::NAME'`` for the first; or path or address.

        Raises:
            FileNotFoundError: If they cannot be fetched, or there is no such file.
            ValueError: If there are none, or they do not fit.
        """
        options, own = self.timm_options, source.startswith(PREFIX)
        if not own:
            overlay = dict(state_dict=dict(read_checkpoint(source)), source='')
            options = dict(options, pretrained_cfg_overlay=overlay)
        try:
            with _watched() as misfits:
                net, _ = _create(self.timm_name, options, pretrained=True)
        except OSError as error:  # of the network, or of the cache
            raise not_fetched(source, error) from error
        except RuntimeError as error:
            raise ValueError(f'{source} does not fit {self.timm_name}: {error}') from error
        state = {k: v for k, v in net.state_dict().items() if k not in misfits['missing']}
        if own and misfits['unexpected']:
            print_log(f'{source}: not used are {listed(misfits["unexpected"])}', logger='current')
        if not own:  # of a file they are named as an error, as all others are
            state |= {name: torch.empty(0) for name in misfits['unexpected']}
        return {f'{NET}{name}': value for name, value in state.items()}


def _create(name: str, options: Mapping[str, Any], pretrained: bool = False) -> tuple[Any, bool]:
    """Create a model, for images of all sizes if it has such an option, and whether it has."""
    timm = import_timm()
    plain = name.partition('.')[0]
    if ':' not in name and not timm.is_model(plain):
        raise RequestError(f'timm has no model {name!r}, {near_names(plain, timm.list_models())}')
    fixed = {'dynamic_img_size', 'img_size'} & {*options}
    for extra in ({},) if fixed else ({'dynamic_img_size': True}, {}):
        try:
            net = timm.create_model(
                name, pretrained=pretrained, num_classes=0, **{**options, **extra}
            )
        except TypeError as error:
            if extra and 'dynamic_img_size' in str(error):
                continue
            raise RequestError(
                f'timm cannot make {name!r} with {dict(options)}: {error}'
            ) from error
        if not hasattr(net, 'forward_intermediates'):
            raise RequestError(
                f'the model {name!r} of timm yields no features (it has no forward_intermediates)'
            )
        return net, bool(extra) or bool(options.get('dynamic_img_size'))
    raise AssertionError('the last way is without an option')


def _feature_info(net: Any) -> Sequence[Mapping[str, Any]]:
    info = net.feature_info
    found: Sequence[Mapping[str, Any]] = getattr(info, 'info', info)
    return found


@contextmanager
def _watched() -> Iterator[dict[str, list[str]]]:
    """Names what is missing and unexpected in weights that are loaded: timm may go on without."""
    names: dict[str, list[str]] = {'missing': [], 'unexpected': []}
    load = nn.Module.load_state_dict

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(self, *args, **kwargs)
        for kind, found in names.items():
            found += getattr(result, f'{kind}_keys')
        return result

    nn.Module.load_state_dict = watched  # type: ignore[method-assign]
    try:
        yield names
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
