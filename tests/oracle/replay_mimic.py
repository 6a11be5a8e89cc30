"""Mimicry: mmrazor's losses, VkD, the cosine of RT-DETRv4, ReviewKD's context, CIRKD's FitNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.adapters import resize
from kd_dense.losses import (
    CosineLoss,
    FBKDLoss,
    FitNetsLoss,
    FTLoss,
    MimicLoss,
    PKDLoss,
    VkDLoss,
)

if TYPE_CHECKING:
    from tests.oracle.lane import Case

Tensors = dict[str, Tensor]
# Of a case: from its tensors, those of the student and the parameters among them, the loss.
Loss = Callable[['Case', Tensors], Tensor]


def replay(case: Case, loss: Loss) -> Tensors:
    """The loss, its gradients by what it was recorded for, and the loss in float32."""

    def inputs(dtype: torch.dtype) -> Tensors:
        return {
            n: case.tensor(n, dtype) for n in case.arrays if not n.startswith(('loss', 'grad'))
        }

    tensors = inputs(torch.float64)
    learnt = [n.removeprefix('grad_') for n in case.arrays if n.startswith('grad_')]
    leaves = [tensors[name].requires_grad_() for name in learnt]
    value = loss(case, tensors)
    grads = torch.autograd.grad(value, leaves)
    found = {f'grad_{name}': grad for name, grad in zip(learnt, grads, strict=True)}
    return {**found, 'loss': value, 'loss_f32': loss(case, inputs(torch.float32))}


def is_input(name: str) -> bool:
    return not name.startswith(('loss', 'grad'))


def _levels(tensors: Tensors) -> list[tuple[Tensor, Tensor]]:
    """Pairs of maps, of one level or of several."""
    names = [n for n in tensors if n.split('/')[0] == 'student']
    return [(tensors[n], tensors[n.replace('student', 'teacher')]) for n in names]


def _sum_of(make: Callable[[dict[str, Any]], MimicLoss]) -> Loss:
    def loss(case: Case, tensors: Tensors) -> Tensor:
        module, values = make(case.arguments), []
        for student, teacher in _levels(tensors):
            if case.arguments.get('resize_stu', True):
                student = resize(student, teacher.shape[2:])
            values.append(module(student, resize(teacher, student.shape[2:])))
        return torch.stack(values).sum()

    return loss


def _l1(case: Case, tensors: Tensors) -> Tensor:
    total = case.arguments.get('reduction', 'mean') == 'sum'
    module = MimicLoss(distance='l1', reduction='image' if total else 'mean')
    return module(tensors['student'], tensors['teacher']) * (len(tensors['student']) ** total)


def _l2(case: Case, tensors: Tensors) -> Tensor:
    theirs = dict(normalize=True, mult=1.0, div_element=False, dist=False) | case.arguments
    reduction = 'mean' if theirs['div_element'] else 'image'
    module = MimicLoss(
        theirs.get('loss_weight', 1.0),
        norm='map' if theirs['normalize'] else 'none',
        reduction='root' if theirs['dist'] else reduction,
    )
    power = 1 if theirs['dist'] else 2
    scale = theirs['mult'] ** power if theirs['normalize'] else 1.0
    images = len(tensors['student']) ** 0.5 if theirs['dist'] else 1.0
    return module(tensors['student'], tensors['teacher']) * scale * images


def _vkd(case: Case, tensors: Tensors) -> Tensor:
    """Maps, and tokens (N, D, C) and (L, N, D, C), which are maps of one column."""

    def maps(side: str) -> list[Tensor]:
        body, neck = tensors[f'{side}_body'], tensors[f'{side}_neck']
        return [tensors[side], *(x.mT[..., None] for x in (body, neck.flatten(0, 1)))]

    pairs = zip(maps('student'), maps('teacher'), strict=True)
    return torch.stack([VkDLoss()(s, t) for s, t in pairs]).sum()


def _cosine(case: Case, tensors: Tensors) -> Tensor:
    student = tensors['student']
    return CosineLoss()(student, resize(tensors['teacher'], student.shape[2:]))


def _fitnet(case: Case, tensors: Tensors) -> Tensor:
    adapted = F.conv2d(tensors['student'], tensors['param/conv.weight'])
    return FitNetsLoss()(adapted, tensors['teacher'])


FBKD_NAMES = {
    'channel_wise_adaptation': 'channel',
    'spatial_wise_adaptation': 'spatial',
    'adaptation_layers': 'features',
    'non_local_adaptation': 'relation',
    'theta.conv': 'theta',
    'phi.0.0.conv': 'phi',
    'phi.conv': 'phi',
    'g.0.0.conv': 'g',
    'g.conv': 'g',
    'conv_out.conv': 'out',
}


def _fbkd_name(theirs: str) -> str:
    name = theirs.removeprefix('param/')
    side, _, name = name.partition('.')
    block = f'{side}_non_local.'
    prefix = f'{side}_relation.' if name.startswith(block) else ''
    name = name.removeprefix(block)
    if name.startswith('conv_out.bn'):
        return prefix + ('scale' if name.endswith('weight') else 'shift')
    layer, _, kind = name.rpartition('.')
    return f'{prefix}{FBKD_NAMES[layer]}.{kind}'


def _fbkd(case: Case, tensors: Tensors) -> Tensor:
    connector, weights = case.arguments['connector'], dict(case.arguments['loss'])
    names = dict(mask_l2_weight='masked', channel_weight='channel', spatial_weight='spatial',
                 nonloacl_weight='relation', loss_weight='weight')  # fmt: skip
    loss = FBKDLoss(
        [case.arguments['in_channels']],
        reductions=[connector.get('reduction', 2)],
        # mmrazor pools by this behind the 2x2 of mmcv's block.
        pools=[2 * connector.get('maxpool_stride', 2) if connector.get('sub_sample') else 1],
        published_batch=None,
        **{names[name]: value for name, value in weights.items()},
    )
    parameters = {_fbkd_name(n): x for n, x in tensors.items() if n.startswith('param/')}
    (connectors,) = loss.connectors
    assert parameters.keys() == dict(connectors.named_parameters()).keys()
    parts = torch.func.functional_call(
        loss,
        {f'connectors.0.{name}': x for name, x in parameters.items()},
        ([tensors['student']], [tensors['teacher']]),
    )
    return torch.stack(list(parts.values())).sum()


LOSSES: dict[tuple[str, str], Loss] = {
    ('mmrazor_losses.npz', 'L1Loss'): _l1,
    ('mmrazor_losses.npz', 'L2Loss'): _l2,
    ('mmrazor_losses.npz', 'PKDLoss'): _sum_of(lambda a: PKDLoss(a.get('loss_weight', 1.0))),
    ('mmrazor_losses.npz', 'FTLoss'): _sum_of(lambda a: FTLoss(a.get('loss_weight', 1.0))),
    ('mmrazor_losses.npz', 'FBKDStudentConnector + FBKDTeacherConnector + FBKDLoss'): _fbkd,
    ('vkd.npz', 'criterion, block of distil_tokens'): _vkd,
    ('rtdetrv4_vfm.npz', 'RTv4Criterion.loss_distillation'): _cosine,
    ('reviewkd.npz', 'hcl'): _sum_of(lambda a: FitNetsLoss(pooled=(4, 2, 1))),
    ('cirkd_baselines.npz', 'CriterionFitNet'): _fitnet,
}
REPLAYS = {key: lambda case, loss=loss: replay(case, loss) for key, loss in LOSSES.items()}
INPUTS = dict.fromkeys(LOSSES, is_input)
