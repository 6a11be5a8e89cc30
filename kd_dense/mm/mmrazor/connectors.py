"""Connectors of mmrazor 1.x as adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_dense.mm.configs import type_name
from kd_dense.mm.mmrazor.note import CannotError

__all__ = ['adapter', 'check_batch_norm', 'conv_module', 'kept', 'settings']

Config = Mapping[str, Any]
# Those that are nothing like an adapter, and why.
REASONS = {
    'BYOTConnector': 'self-distillation of one network is not in kd_dense',
    'CRDConnector': 'contrastive representation distillation (CRD) is not in kd_dense',
    'NormConnector': 'a norm without a convolution is carried over in front of '
    'ChannelWiseDivergence, on both sides',
    'OFDTeacherConnector': 'overhaul feature distillation (OFD) is not in kd_dense',
    'Paraphraser': 'factor transfer with an autoencoder that is trained beforehand is not in '
    'kd_dense; its comparison is FTLoss',
    'Translator': 'factor transfer with an autoencoder that is trained beforehand is not in '
    'kd_dense; its comparison is FTLoss',
}


def settings(part: Config, **defaults: Any) -> dict[str, Any]:
    """The arguments of a part of a config, with defaults for those that are not given.

    Raises:
        CannotError: If there is another argument.

    Examples:
        >>> settings(dict(type='KLDivergence', tau=4), tau=1.0, loss_weight=1.0)
        {'tau': 4, 'loss_weight': 1.0}
    """
    given = {name: value for name, value in part.items() if name not in ('type', '_scope_')}
    for name in given.keys() - defaults.keys():
        raise CannotError(f'{type_name(part)} of mmrazor 1.x has no argument {name!r}')
    return {**defaults, **given}


def adapter(student: Config | None, teacher: Config | None = None) -> bool | dict[str, Any]:
    """The adapter of a term that does what the connectors of a loss do.

    Args:
        student: The connector behind the student's record, if there is one.
        teacher: That behind the teacher's.

    Raises:
        CannotError: If none does.
    """
    if teacher is not None:
        raise CannotError(
            f'its connector {type_name(teacher)} changes the map of the teacher, and adapters '
            'are for the student alone'
        )
    return True if student is None else _adapter(student)


def _adapter(connector: Config) -> bool | dict[str, Any]:
    """The adapter for a connector that is a 1x1 convolution, or a resize."""
    kind = type_name(connector)
    if kind in ('ConvModuleConnector', 'ConvModuleConncetor'):
        norm, channels = conv_module(connector)
        if norm is not None:
            check_batch_norm(norm)
            return dict(type='Adapter', norm=True)
        return kept(channels)
    if kind == 'TorchNNConnector':
        return _torch_module(connector)
    if kind == 'TorchFunctionalConnector':
        return _torch_function(connector)
    raise CannotError(REASONS.get(kind, f'there is no counterpart of its connector {kind}'))


def conv_module(connector: Config) -> tuple[Config | None, tuple[int, int]]:
    """The norm behind a 1x1 convolution, if there is one, and its channels, in and out.

    Raises:
        CannotError: If it is more than a convolution and a norm.
    """
    found = settings(
        connector, in_channel=0, out_channel=0, kernel_size=1, stride=1, padding=0, dilation=1,
        groups=1, bias='auto', conv_cfg=None, norm_cfg=None, act_cfg=dict(type='ReLU'),
        inplace=True, with_spectral_norm=False, padding_mode='zeros',
        order=('conv', 'norm', 'act'), init_cfg=None,
    )  # fmt: skip
    if found['act_cfg'] is not None:
        raise CannotError(
            f'its ConvModuleConnector ends in {type_name(found["act_cfg"])}, which '
            'ConvModuleConnector adds unless act_cfg=None, and no adapter here ends in one'
        )
    plain = dict(kernel_size=1, stride=1, padding=0, groups=1, conv_cfg=None, init_cfg=None,
                 with_spectral_norm=False)  # fmt: skip
    for name, value in plain.items():
        if found[name] not in (value, (value, value)):
            raise CannotError(
                f'its ConvModuleConnector has {name}={found[name]!r}, and adapters here are 1x1 '
                'convolutions'
            )
    if tuple(found['order'])[:2] != ('conv', 'norm'):
        raise CannotError(f'its ConvModuleConnector has order={found["order"]!r}')
    if found['norm_cfg'] is None and found['bias'] is False:
        raise CannotError('its ConvModuleConnector has no bias, and adapters here have one')
    return found['norm_cfg'], (found['in_channel'], found['out_channel'])


def kept(channels: tuple[int, int]) -> bool | dict[str, Any]:
    """An adapter that has a convolution whatever the channels are."""
    return dict(type='Adapter', always=True) if channels[0] == channels[1] else True


def check_batch_norm(norm: Config, affine: bool = True) -> None:
    """Raise ``CannotError`` unless a norm is BN with the eps of PyTorch."""
    if type_name(norm) not in ('BN', 'BN2d', 'BatchNorm2d') or norm.get('eps', 1e-5) != 1e-5:
        raise CannotError(f'its connector has the norm {dict(norm)}, and here it is BN, eps 1e-5')
    if norm.get('affine', True) != affine:
        raise CannotError(f'its connector has a norm with affine={not affine}')


def _torch_module(connector: Config) -> bool | dict[str, Any]:
    found = settings(connector, module_name=None, module_args={}, init_cfg=None)
    arguments = dict(found['module_args'])
    channels = arguments.pop('in_channels', 0), arguments.pop('out_channels', 0)
    if found['module_name'] != 'Conv2d' or arguments not in (
        dict(kernel_size=1),
        dict(kernel_size=(1, 1)),
    ):
        raise CannotError(
            f'its TorchNNConnector is {found["module_name"]}({found["module_args"]}), and '
            'adapters here are 1x1 convolutions'
        )
    return kept(channels)


def _torch_function(connector: Config) -> bool:
    found = settings(connector, function_name=None, func_args={}, init_cfg=None)
    arguments = found['func_args']
    bilinear = arguments.get('mode') == 'bilinear' and not arguments.get('align_corners')
    if found['function_name'] != 'interpolate' or not bilinear:
        raise CannotError(
            f'its TorchFunctionalConnector calls {found["function_name"]}, and what adapters '
            'here do beside a 1x1 convolution is to resize, bilinearly without align_corners'
        )
    return True  # a map of the student that differs in size is resized to the teacher's
