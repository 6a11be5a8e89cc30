"""Generation: MGD, in its own repository and in mmrazor, and Af-DCD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kd_dense.losses import af_dcd_loss, mgd_loss
from kd_dense.losses.features.generation.mgd import Generator
from tests.oracle.replay_mimic import Tensors, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case

NAMES = {
    'generation.0': 'first',
    'generation.2': 'last',
    'projetor.0': 'first',
    'projetor.2': 'last',
    'projetor.block_1.0': 'first',
    'projetor.block_2.0': 'deep_first',
    'projetor.adpator_1': 'last',
    'projetor.adpator_2': 'deep_last',
}


class _Recorded(nn.Module):
    """A generator with the recorded parameters, that gradients flow into."""

    def __init__(self, tensors: Tensors, channels: int) -> None:
        super().__init__()
        self.parameters_of = {}
        for name, value in tensors.items():
            layer, _, kind = name.removeprefix('param/').rpartition('.')
            if layer in NAMES:
                self.parameters_of[f'{NAMES[layer]}.{kind}'] = value
        deep = 'deep_first.weight' in self.parameters_of
        self.generator = Generator(channels, deep)
        assert self.parameters_of.keys() == dict(self.generator.named_parameters()).keys()

    def forward(self, x: Tensor) -> Tensor:
        generated: Tensor = functional_call(self.generator, self.parameters_of, x)
        return generated


def _aligned(tensors: Tensors) -> Tensor:
    """The student's map behind what gives it the width of the teacher's."""
    student = tensors['student']
    if 'param/align.weight' in tensors:
        student = F.conv2d(student, tensors['param/align.weight'], tensors['param/align.bias'])
    return student


def _mask(case: Case, tensors: Tensors) -> Tensor:
    if 'mask' in tensors:
        return tensors['mask']
    ratio = case.arguments.get('lambda_mgd', case.arguments.get('mask_ratio'))
    return (tensors['random'] <= 1 - ratio).to(tensors['student'].dtype)


def _mgd(case: Case, tensors: Tensors) -> Tensor:
    student, teacher = _aligned(tensors), tensors['teacher']
    generator = _Recorded(tensors, teacher.shape[1])
    mask = _mask(case, tensors)
    return case.arguments['alpha_mgd'] * mgd_loss(student, teacher, generator, mask)


def _last_step(case: Case, tensors: Tensors) -> Tensor:
    """mmrazor's loss alone, whose generation is a connector."""
    student, teacher = tensors['student'], tensors['teacher']
    mask = student.new_ones(len(student), 1, *student.shape[2:])
    alpha = case.arguments.get('alpha_mgd', 2e-5)
    return alpha * mgd_loss(student, teacher, nn.Identity(), mask)


def _af_dcd_parts(case: Case, tensors: Tensors) -> Tensors:
    arguments, teacher = case.arguments, tensors['teacher']
    return af_dcd_loss(
        _aligned(tensors),
        teacher,
        _Recorded(tensors, teacher.shape[1]),
        _mask(case, tensors),
        temperature=arguments['tau_ocd'],
        groups=arguments['M_ocd'],
        pool=max(arguments['pool_size'], 1),
        window=tuple(arguments['patch_size']),
    )


def _replay_af_dcd(case: Case) -> Tensors:
    parts = _af_dcd_parts(case, {n: case.tensor(n) for n in case.arrays})
    found = replay(case, lambda *x: torch.stack([*_af_dcd_parts(*x).values()]).sum())
    return {**found, 'loss_fd': parts['features'], 'loss_ctr': parts['contrast']}


LOSSES = {
    ('mgd.npz', 'FeatureLoss (detection)'): _mgd,
    ('mgd.npz', 'FeatureLoss (segmentation)'): _mgd,
    ('mgd.npz', 'MGDLoss (classification)'): _mgd,
    ('mmrazor_losses.npz', 'MGDConnector + MGDLoss'): _mgd,
    ('mmrazor_losses.npz', 'MGDLoss'): _last_step,
}
AF_DCD = ('af_dcd.npz', 'OmniContrastiveFeatureLoss')
REPLAYS = {
    **{key: lambda case, loss=loss: replay(case, loss) for key, loss in LOSSES.items()},
    AF_DCD: _replay_af_dcd,
}
INPUTS = dict.fromkeys(REPLAYS, is_input)
