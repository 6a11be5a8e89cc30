"""Logits: distributions, their parts and their correlations, on maps and on rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.losses.logits import (
    dist_loss,
    dkd_loss,
    gdkd_loss,
    kd_loss,
    lwf_loss,
    nkd_loss,
    unbiased_cross_entropy,
    unbiased_kd_loss,
    wsld_loss,
)
from kd_dense.losses.logits.camkd import confidence_weights

if TYPE_CHECKING:
    from tests.oracle.lane import Case, Key

# What a loss is called with, of a case, its student and its teacher.
Loss = Callable[['Case', Tensor, Tensor], Tensor]


def is_input(name: str) -> bool:
    return not name.startswith(('loss', 'grad'))


def is_camkd_input(name: str) -> bool:
    return is_input(name) and name != 'weight'


def replay(loss: Loss) -> Callable[[Case], dict[str, Tensor]]:
    """The loss, its gradient, and the loss in float32."""

    def run(case: Case) -> dict[str, Tensor]:
        def call(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            student = case.tensor('student', dtype).requires_grad_()
            name = 'teacher' if 'teacher' in case.arrays else 'student'
            return loss(case, student, case.tensor(name, dtype)), student

        value, student = call(torch.float64)
        (grad,) = torch.autograd.grad(value, student)
        return {'loss': value, 'grad_student': grad, 'loss_f32': call(torch.float32)[0]}

    return run


def renamed(case: Case, **names: str) -> dict[str, Any]:
    """The arguments under our names; others are left out."""
    return {ours: case.arguments[n] for n, ours in names.items() if n in case.arguments}


def labels(case: Case) -> Tensor:
    """Labels of maps or rows, or of the rows of each image."""
    names = sorted(name for name in case.arrays if name.split('/')[0] == 'labels')
    return torch.cat([case.tensor(name, torch.int64) for name in names])


def enlarged(case: Case, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the size of the labels, where the case says so."""
    if not case.arguments['resize_out']:
        return student, teacher
    size = case.arguments.get('label_size') or case.arrays['labels'].shape[1:]
    student, teacher = (
        F.interpolate(x, tuple(size), mode='bilinear', align_corners=True)
        for x in (student, teacher)
    )
    return student, teacher


def mmrazor_kl(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    per = {'batchmean': 'image', 'mean': 'entry'}[case.arguments.get('reduction', 'batchmean')]
    return kd_loss(student, teacher, **renamed(case, tau='temperature'), per=per)  # type: ignore[arg-type]


def mmrazor_dkd(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    reduction = case.arguments.get('reduction', 'batchmean')
    found = dkd_loss(
        student,
        teacher,
        labels(case),
        **{'beta': 1.0, **renamed(case, tau='temperature', alpha='alpha', beta='beta')},
        reduction='mean' if reduction == 'batchmean' else 'sum',
    )
    return found * float(case.arguments.get('loss_weight', 1.0))


def mmrazor_dist(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    names = dict(inter_loss_weight='inter', intra_loss_weight='intra', tau='temperature')
    return dist_loss(student, teacher, **renamed(case, **names))


def mmrazor_wsld(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    found = wsld_loss(student, teacher, labels(case), **renamed(case, tau='temperature'))
    return found * float(case.arguments.get('loss_weight', 1.0))


def cirkd_kd(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    return kd_loss(student, teacher, **renamed(case, temperature='temperature'))


def torchdistiller_kd(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    if case.arguments['upsample']:
        size = [8 * side for side in student.shape[2:]]
        student, teacher = (
            F.interpolate(x, size, mode='bilinear', align_corners=True) for x in (student, teacher)
        )
    temperature = case.arguments['temperature']
    return kd_loss(
        student, teacher, temperature=temperature, per='entry', temperature_squared=False
    )


def dist_seg(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    if case.cls == 'DIST':
        return dist_loss(student, teacher, **renamed(case, beta='inter', gamma='intra'))
    names = dict(T='temperature', per_image_intra='per_image')
    return dist_loss(
        *enlarged(case, student, teacher), **renamed(case, **names), temperature_squared=False
    )


def dist_detection(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    names = dict(beta='inter', gamma='intra', use_sigmoid='sigmoid')
    return dist_loss(student, teacher, **renamed(case, **names))


def dkd_dense(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    if case.cls == 'GDKD':
        names = dict(w0='between', w1='top', w2='rest', k='k', T='temperature')
        return gdkd_loss(student, teacher, **renamed(case, **names))
    names = dict(alpha='alpha', beta='beta', T='temperature')
    maps = enlarged(case, student, teacher)
    return dkd_loss(*maps, labels(case), **renamed(case, **names), ignore_index=-1)


def rcnn_dkd(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    names = dict(alpha='alpha', beta='beta', temperature='temperature')
    return dkd_loss(student, teacher, labels(case), **renamed(case, **names))


def nkd(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    names = dict(temp='temperature', gamma='gamma')
    return nkd_loss(student, teacher, labels(case), **renamed(case, **names))


def logit_std(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    options = dict(
        temperature=case.arguments['temperature'],
        standardise=case.arguments.get('logit_stand', True),
    )
    if case.cls == 'dkd_loss':
        names = dict(alpha='alpha', beta='beta')
        return dkd_loss(student, teacher, labels(case), **renamed(case, **names), **options)
    return kd_loss(student, teacher, temperature_squared=case.cls == 'kd_loss', **options)


def incremental(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    if case.cls == 'UnbiasedCrossEntropy':
        return unbiased_cross_entropy(student, labels(case), case.arguments['old_cl'])
    loss = lwf_loss if case.cls == 'KnowledgeDistillationLoss' else unbiased_kd_loss
    mask = case.tensor('mask') if 'mask' in case.arrays else None
    return loss(student, teacher, mask, case.arguments['alpha'])


MMRAZOR = 'mmrazor_losses.npz'
INCREMENTAL = 'incremental_seg.npz'
LOSSES: dict[Key, Loss] = {
    (MMRAZOR, 'KLDivergence'): mmrazor_kl,
    (MMRAZOR, 'DKDLoss'): mmrazor_dkd,
    (MMRAZOR, 'DISTLoss'): mmrazor_dist,
    (MMRAZOR, 'WSLD'): mmrazor_wsld,
    ('cirkd_baselines.npz', 'CriterionKD'): cirkd_kd,
    ('torchdistiller_kd_ifv.npz', 'CriterionKD'): torchdistiller_kd,
    'dist_seg.npz': dist_seg,
    'dist_detection.npz': dist_detection,
    'dkd_dense.npz': dkd_dense,
    'rcnn_dkd.npz': rcnn_dkd,
    'nkd.npz': nkd,
    'logit_std.npz': logit_std,
    (INCREMENTAL, 'KnowledgeDistillationLoss'): incremental,
    (INCREMENTAL, 'UnbiasedKnowledgeDistillationLoss'): incremental,
    (INCREMENTAL, 'UnbiasedCrossEntropy'): incremental,
}


def camkd(case: Case) -> dict[str, Tensor]:
    """The weights of teachers, on the errors of features and divided by their number, as there."""
    count = case.arguments['teachers']

    def call(dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        def each(name: str) -> list[Tensor]:
            return [case.tensor(f'{name}/{i}', dtype) for i in range(count)]

        ours = [x.requires_grad_() for x in each('student')]
        errors = [
            (s - t).square().mean((1, 2, 3)) for s, t in zip(ours, each('teacher'), strict=True)
        ]
        true = case.tensor('labels', torch.int64)
        known = [F.cross_entropy(x, true, reduction='none') for x in each('teacher_logits')]
        weights = confidence_weights(torch.stack(known))
        return (weights * torch.stack(errors)).sum(0).mean() / count, weights, ours

    value, weights, ours = call(torch.float64)
    grads = torch.autograd.grad(value, ours)
    return {
        'loss': value,
        'weight': weights,
        'loss_f32': call(torch.float32)[0],
        **{f'grad_student/{i}': grad for i, grad in enumerate(grads)},
    }


REPLAYS = {**{key: replay(loss) for key, loss in LOSSES.items()}, 'camkd.npz': camkd}
INPUTS = {**dict.fromkeys(REPLAYS, is_input), 'camkd.npz': is_camkd_input}
