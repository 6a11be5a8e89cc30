"""Review: ReviewKD, in its repository, and of TransKD all but its own fusion, which is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kd_dense.adapters import Adapter, map_size, tokens_to_map
from kd_dense.losses import FitNetsLoss, ReviewKDLoss, mimic_loss
from kd_dense.losses.features.review import reviewed
from tests.oracle.replay_mimic import Tensors, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case

NAMES = {
    'conv1.0': 'narrow',
    'conv1.1': 'narrow_norm',
    'att_conv.0': 'attention',
    'conv2.0': 'out',
    'conv2.1': 'out_norm',
}
GRIDS = (4, 2, 1)


def _maps(tensors: Tensors, name: str) -> list[Tensor]:
    return [tensors[n] for n in tensors if n.startswith(f'{name}/')]


def _parameters(tensors: Tensors, levels: int) -> Tensors:
    """Ours count from the finest level."""
    found = {}
    for name, value in tensors.items():
        if name.startswith('param/'):
            _, level, rest = name.split('.', 2)
            layer, _, kind = rest.rpartition('.')
            found[f'{levels - 1 - int(level)}.{NAMES[layer]}.{kind}'] = value
    return found


class _Reviewed(nn.Module):
    """The fusions of the loss, as one module."""

    def __init__(self, loss: ReviewKDLoss) -> None:
        super().__init__()
        self.fusions = loss.fusions

    def forward(self, student: list[Tensor]) -> list[Tensor]:
        return reviewed(student, list(self.fusions))


def _fused(case: Case, tensors: Tensors) -> list[Tensor]:
    widths = case.arguments['in_channels'], case.arguments['out_channels']
    loss = ReviewKDLoss(*widths, width=case.arguments['mid_channel'])
    parameters = _parameters(tensors, len(loss.fusions))
    assert parameters.keys() == dict(loss.fusions.named_parameters()).keys()
    named = {f'fusions.{name}': value for name, value in parameters.items()}
    found: list[Tensor] = functional_call(_Reviewed(loss), named, (_maps(tensors, 'student'),))
    return found


def _review(case: Case, tensors: Tensors) -> Tensor:
    widths = case.arguments['in_channels'], case.arguments['out_channels']
    loss = ReviewKDLoss(*widths, width=case.arguments['mid_channel'])
    named = {f'fusions.{n}': x for n, x in _parameters(tensors, len(loss.fusions)).items()}
    maps = _maps(tensors, 'student'), _maps(tensors, 'teacher')
    value: Tensor = functional_call(loss, named, maps)
    return value


def _replay_review(case: Case) -> Tensors:
    fused = _fused(case, {n: case.tensor(n) for n in case.arrays})
    name = 'fused' if 'fused/0' in case.arrays else 'out'
    return {**replay(case, _review), **{f'{name}/{i}': x for i, x in enumerate(fused)}}


def _contexts(case: Case, tensors: Tensors) -> list[Tensor]:
    pairs = zip(_maps(tensors, 'student'), _maps(tensors, 'teacher'), strict=True)
    return [FitNetsLoss(pooled=GRIDS)(s, t) for s, t in pairs]


def _replay_context(case: Case) -> Tensors:
    levels = _contexts(case, {n: case.tensor(n) for n in case.arrays})
    named = {f'loss_level/{i}': x for i, x in enumerate(levels)}
    return {**replay(case, lambda *x: torch.stack(_contexts(*x)).sum()), **named}


# TransKD


def _selective(x: Tensor, above: Tensor, name: str, p: Tensors) -> Tensor:
    """Its fusion: the share of each of the two maps, channel by channel, from their sum."""
    above = F.interpolate(above, x.shape[2:], mode='nearest')
    pooled = (x + above).mean((2, 3), keepdim=True)
    if len(x) > 1:
        squeezed = F.conv2d(pooled, p[f'{name}.fc.0.weight'])
        squeezed = F.batch_norm(
            squeezed, None, None, p[f'{name}.fc.1.weight'], p[f'{name}.fc.1.bias'], training=True
        )
    else:
        squeezed = F.conv2d(pooled, p[f'{name}.fc1.0.weight'])
    branches = [
        F.conv2d(squeezed.relu(), p[f'{name}.fcs.{i}.weight'], p[f'{name}.fcs.{i}.bias'])
        for i in range(2)
    ]
    shares = torch.stack(branches).softmax(0)
    mixed: Tensor = shares[0] * x + shares[1] * above
    return mixed


def _normed(x: Tensor, name: str, p: Tensors, **options: Any) -> Tensor:
    convolved = F.conv2d(x, p[f'{name}.0.weight'], **options)
    weight, bias = p[f'{name}.1.weight'], p[f'{name}.1.bias']
    return F.batch_norm(convolved, None, None, weight, bias, training=True)


def _transkd(case: Case, tensors: Tensors) -> Tensors:
    p = {n.removeprefix('param/'): x for n, x in tensors.items() if n.startswith('param/')}
    contexts: list[Tensor] = []
    above = None
    teachers = _maps(tensors, 'teacher')
    for index, student in enumerate(reversed(_maps(tensors, 'student'))):
        name = f'skfs.{index}'
        x = _normed(student, f'{name}.conv1', p)
        above = x = x if above is None else _selective(x, above, name, p)
        fused = _normed(x, f'{name}.conv2', p, padding=1)
        contexts.append(mimic_loss(fused, teachers[-1 - index], pooled=GRIDS))
    unused = torch.stack([0 * x.sum() for n, x in p.items() if '.fc' in n]).sum()
    hcl = torch.stack(contexts).sum() + unused
    return {'loss_hcl': hcl, 'loss_pea': _embeddings(case, tensors, p)}


def _embeddings(case: Case, tensors: Tensors, p: Tensors) -> Tensor:
    """Patch embeddings, as terms compare them: tokens as maps, an adapter, and FitNets."""
    pairs = zip(_maps(tensors, 'student_embed'), _maps(tensors, 'teacher_embed'), strict=True)
    total = []
    for i, (s, t) in enumerate(pairs):
        size = map_size(s.shape[1], tensors[f'student/{i}'].shape[2:])
        assert size is not None
        ours, theirs = tokens_to_map(s, size), tokens_to_map(t, size)
        names = [n for n in p if n.startswith(f'embed{i + 1}_linearproject')]
        weight, bias = (p[n] for n in sorted(names, reverse=True))
        adapter = Adapter(s.shape[2], t.shape[2], always=True)
        parameters = {'conv.weight': weight[..., None, None], 'conv.bias': bias}
        adapted = functional_call(adapter, parameters, (ours, size))
        total.append(FitNetsLoss(case.arguments['embed_weights'][i])(adapted, theirs))
    return torch.stack(total).sum()


def _replay_transkd(case: Case) -> Tensors:
    parts = _transkd(case, {n: case.tensor(n) for n in case.arrays})
    return {**replay(case, lambda *x: torch.stack([*_transkd(*x).values()]).sum()), **parts}


REPLAYS = {
    ('reviewkd.npz', 'ReviewKD + hcl'): _replay_review,
    ('reviewkd_det.npz', 'ReviewKD + hcl'): _replay_review,
    ('reviewkd_det.npz', 'hcl'): _replay_context,
    ('transkd.npz', 'SKF + hcl + PEA'): _replay_transkd,
}
INPUTS = dict.fromkeys(REPLAYS, lambda n: is_input(n) and n.split('/')[0] not in ('fused', 'out'))
