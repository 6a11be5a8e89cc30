"""Prototypes: IFVD, in three repositories, and APD with its distillation of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import labels_at
from kd_dense.losses import IFVDLoss, KDLoss, apd_loss
from kd_dense.losses.features.prototypes.ifvd import variation
from tests.oracle.replay_mimic import Tensors, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case


def _labels(case: Case, name: str) -> Tensor:
    return torch.from_numpy(case.arrays[name]).long()


def _ifvd(case: Case) -> Tensors:
    classes, target = case.arguments['classes'], _labels(case, 'target')

    def loss(case: Case, tensors: Tensors) -> Tensor:
        module = IFVDLoss(num_classes=classes)
        return module(tensors['student'], tensors['teacher'], segmentation=target)

    found = replay(case, loss)
    for side in ('student', 'teacher'):
        features = case.tensor(side)
        labels, valid = labels_at(target, features.shape[2:], classes)
        found[f'similarity_{side}'] = variation(features, labels, valid, classes)
    return found


def _apd(case: Case) -> Tensors:
    """The part of the teacher's layers has gradients of its own."""
    labels, arguments = _labels(case, 'labels'), case.arguments

    def layers(tensors: Tensors, side: str) -> Tensor:
        x = tensors[side]
        names = [f'param/{side}_adapter.{i}.{kind}' for i in (0, 2) for kind in ('weight', 'bias')]
        first, bias, second, shift = (tensors[name] for name in names)
        return F.conv2d(F.conv2d(x, first, bias).relu(), second, shift)

    def parts(tensors: Tensors) -> Tensors:
        found = apd_loss(
            layers(tensors, 'student'),
            layers(tensors, 'teacher'),
            labels,
            arguments['classes'],
            arguments['kmeans_temp'],
        )
        return {
            'loss_pred': found['perspective'],
            'loss_align': found['centres'],
            'loss_teacher': found['teacher'],
        }

    def loss(case: Case, tensors: Tensors) -> Tensor:
        found = parts(tensors)
        unused = sum(x.sum() for n, x in tensors.items() if n.startswith('param/teacher'))
        return found['loss_pred'] + found['loss_align'] + 0 * unused

    recorded = {name: case.tensor(name) for name in case.arrays if is_input(name)}
    prefix = 'param/teacher_adapter.'
    learnt = {n: x.requires_grad_() for n, x in recorded.items() if n.startswith(prefix)}
    found = parts(recorded)
    grads = torch.autograd.grad(found['loss_teacher'], [*learnt.values()])
    own = {
        f'grad_teacher_param/{name.removeprefix(prefix)}': grad
        for name, grad in zip(learnt, grads, strict=True)
    }
    shown = {n: a for n, a in case.arrays.items() if not n.startswith('grad_teacher_param')}
    return {**replay(case._replace(arrays=shown), loss), **found, **own}


def _logits(case: Case) -> Tensors:
    def loss(case: Case, tensors: Tensors) -> Tensor:
        maps = (
            F.interpolate(tensors[n], case.arguments['new_size'], mode='bilinear',
                          align_corners=True)
            for n in ('student', 'teacher')
        )  # fmt: skip
        module = KDLoss(temperature=case.arguments['temperature'], valid_only=False, per='entry')
        return module(*maps)

    return replay(case, loss)


REPLAYS = {
    ('ifvd.npz', 'CriterionIFV'): _ifvd,
    ('torchdistiller_kd_ifv.npz', 'CriterionIFV'): _ifvd,
    ('apd.npz', 'CriterionKmeansInterWhole'): _apd,
    ('apd.npz', 'CriterionKD'): _logits,
}
INPUTS = dict.fromkeys(REPLAYS, is_input)
