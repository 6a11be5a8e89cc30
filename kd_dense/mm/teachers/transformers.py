"""Teachers from transformers: any of its models of images, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.mm.configs import RequestError
from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.mm.teachers.foreign import NET, ForeignModel, not_fetched
from kd_dense.mm.wording import listed
from kd_dense.registry import MODELS
from kd_dense.taps import near_names, tensors_in

__all__ = ['TransformersModel']

PREFIX = 'transformers::'
# What of a model sees images, where it does more: of SAM, of CLIP and its like, of Mask2Former.
PARTS = ('vision_encoder', 'vision_model', 'vision_tower', 'pixel_level_module')
UNUSED = ('pooler_output', 'attentions', 'cross_attentions')
# Models of one size, whatever they say.
FIXED = ('sam', 'sam2')


@MODELS.register_module()
class TransformersModel(ForeignModel):
    """A model of transformers that sees images, as a teacher of features.

    It is what ``AutoModel`` makes of the name; of SAM the image encoder, of CLIP the vision tower,
    of Mask2Former backbone and pixel decoder. Mean, standard deviation and the factor of the
    pixels are those of its image processor.

    Args:
        model: Its name, as ``'facebook/dinov2-small'``, or the path of a folder.
        part: The part of it that is run, in place of the usual one.
        out_indices: Which of its maps, of the embeddings, after each layer, and at the end; by
            default of each stride the last.
        mean: In place of the image processor's, as ``std`` and ``scale``.
        std: See there.
        scale: See there.
        size_divisor: See [`kd_dense.mm.teachers.foreign.ForeignModel`][].
        input_size: See there.
        config: Of a model without a name: its ``model_type``, and what its config class takes.
        options: What the config says otherwise, as ``num_hidden_layers=6``.

    Raises:
        RequestError: If transformers is not installed, or there is no such model.
        FileNotFoundError: If its config cannot be fetched.
    """

    @staticmethod
    def pick(output: Any) -> list[Tensor]:
        """Embeddings and what each layer yields, in order; then what the model ends with."""
        kept = {k: v for k, v in output.items() if k not in UNUSED}
        last = kept.pop('last_hidden_state', None)
        if 'reshaped_hidden_states' in kept:
            kept.pop('hidden_states', None)
        return [*tensors_in(kept), *tensors_in(last)]

    def __init__(
        self,
        model: str = '',
        part: str | None = None,
        out_indices: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float | None = None,
        size_divisor: int | None = None,
        input_size: Sequence[int] | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        hub = _transformers()
        found = _config(hub, model, config, options)
        self.model_name, self.model_config, self.part = model, found, part
        net = hub.AutoModel.from_config(found)
        self.model_class = type(net)
        if part is None:
            self.part = next((one for one in PARTS if hasattr(net, one)), '')
        net = _part(net, self.part)
        own = getattr(found, 'vision_config', found)
        if size_divisor is None:
            size_divisor = _patch(own)
        if input_size is None and found.model_type in FIXED:
            input_size = (own.image_size, own.image_size)
        arguments: dict[str, Any] = dict(output_hidden_states=True)
        if _takes(net, 'interpolate_pos_encoding'):
            arguments['interpolate_pos_encoding'] = True
        said = _processor(hub, model) if mean is None or std is None else {}
        mean, std = (
            said.get(name) if value is None else value
            for name, value in (('image_mean', mean), ('image_std', std))
        )
        if mean is None or std is None:
            raise RequestError(
                f'the model {model or found.model_type} of transformers comes without an image '
                'processor that says how images are normalised: say mean=(...) and std=(...)'
            )
        if scale is None:
            scale = 1 / said.get('rescale_factor', 1 / 255)
        super().__init__(
            net,
            mean,
            std,
            scale=scale,
            size_divisor=size_divisor,
            input_size=input_size,
            arguments=arguments,
            out_indices=out_indices,
        )

    def read_weights(self, source: str) -> Mapping[str, Tensor]:
        """The published weights of the model, or those of a checkpoint.

        Args:
            source: ``'transformers::NAME'`` for the first; or path or address.

        Raises:
            FileNotFoundError: If they cannot be fetched, or there is no such file.
            ValueError: If there are none.
        """
        own = source.startswith(PREFIX)
        given: dict[str, Any] = {} if own else dict(state_dict=dict(read_checkpoint(source)))
        try:
            # As the class, not as AutoModel, which would look for files of a name.
            whole, said = self.model_class.from_pretrained(
                self.model_name if own else None,
                config=self.model_config,
                output_loading_info=True,
                **given,
            )
        except OSError as error:
            raise not_fetched(source, error) from error
        except (RuntimeError, ValueError) as error:
            raise ValueError(f'{source} does not fit its config: {error}') from error
        inner = f'{self.part}.' if self.part else ''
        missing = {name.removeprefix(inner) for name in said['missing_keys']}
        state = {k: v for k, v in _part(whole, self.part).state_dict().items() if k not in missing}
        unexpected = sorted(said['unexpected_keys'])
        if own and unexpected:
            print_log(f'{source}: not used are {listed(unexpected)}', logger='current')
        if not own:  # of a file they are named as an error, as all others are
            state |= {name: torch.empty(0) for name in unexpected}
        return {f'{NET}{name}': value for name, value in state.items()}


def _transformers() -> Any:
    if find_spec('transformers') is None:
        raise RequestError(
            'a teacher from transformers wants the package transformers: pip install transformers'
        )
    import transformers

    return transformers


def _config(
    hub: Any, name: str, config: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> Any:
    """The config of a model, by its name or as it is given."""
    if config is not None:
        fields = {**config, **options}
        kind = fields.pop('model_type', None)
        known = hub.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        if kind not in known:
            raise RequestError(
                f'config: transformers has no model_type {kind!r}, {near_names(str(kind), known)}'
            )
        return hub.AutoConfig.for_model(kind, **fields)
    if not name:
        raise RequestError(
            "a teacher from transformers wants a name: model='facebook/dinov2-small'"
        )
    try:
        return hub.AutoConfig.from_pretrained(name, **options)
    except OSError as error:
        raise not_fetched(f'{PREFIX}{name}', error) from error
    except ValueError as error:
        raise RequestError(f'{PREFIX}{name} is no model of transformers: {error}') from error


def _processor(hub: Any, name: str) -> Mapping[str, Any]:
    """What the image processor of a model does to pixels; nothing where there is none."""
    if not name:
        return {}
    try:
        found, _ = hub.image_processing_base.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # it has none, or there is no network
        return {}
    return dict(found)


def _part(net: nn.Module, name: str | None) -> nn.Module:
    """A part of a model."""
    try:
        return net.get_submodule(name or '')
    except AttributeError:
        parts = [part for part, _ in net.named_modules() if part]
        raise RequestError(
            f'{type(net).__name__} has no part {name!r}, {near_names(str(name), parts)}'
        ) from None


def _patch(config: Any) -> int:
    """The size of the patches of a plain vision transformer; 1 for other nets."""
    patch = getattr(config, 'patch_size', None)
    plain = isinstance(getattr(config, 'hidden_size', None), int) and not hasattr(config, 'depths')
    if not plain or patch is None:
        return 1
    return int(patch if isinstance(patch, int) else max(patch))


def _takes(net: nn.Module, name: str) -> bool:
    return name in signature(net.forward).parameters
