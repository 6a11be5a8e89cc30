"""Channel-wise distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import standardised
from kd_dense.losses import cwd_loss
from tests.oracle.lane import Case


def replay_cwd(case: Case) -> dict[str, Tensor]:
    if case.cls != 'CriterionCWD':
        raise NotImplementedError(f'no replay for class {case.cls}')
    names = {'norm_type': 'norm', 'divergence': 'divergence', 'temperature': 'temperature'}
    arguments = {names[key]: value for key, value in case.arguments.items()}
    # With norm 'none' the authors' code reads the first image alone.
    arguments['first_image_only'] = arguments.get('norm') == 'none'

    student = case.tensor('student').requires_grad_()
    loss = cwd_loss(student, case.tensor('teacher'), **arguments)
    (grad,) = torch.autograd.grad(loss, student)
    loss_f32 = cwd_loss(
        case.tensor('student', torch.float32), case.tensor('teacher', torch.float32), **arguments
    )
    return {
        'loss': loss,
        'grad_student': grad,
        'loss_f32': loss_f32,
        'loss_mmrazor': loss,
        'grad_student_mmrazor': grad,
    }


def replay_cirkd(case: Case) -> dict[str, Tensor]:
    """CIRKD's own, divided by the width of the student before its convolution."""
    arguments = case.arguments

    def loss(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        student, weight = (
            case.tensor(name, dtype).requires_grad_() for name in ('student', 'param/conv.weight')
        )
        value = cwd_loss(
            F.conv2d(student, weight),
            case.tensor('teacher', dtype),
            arguments['temperature'],
            arguments['norm_type'],
            arguments['divergence'],
        )
        return value * arguments['t_channels'] / arguments['s_channels'], student, weight

    value, *inputs = loss(torch.float64)
    names = 'grad_student', 'grad_param/conv.weight'
    grads = dict(zip(names, torch.autograd.grad(value, inputs), strict=True))
    return {'loss': value, 'loss_f32': loss(torch.float32)[0], **grads}


def replay_rtmdet(case: Case) -> dict[str, Tensor]:
    """A convolution to the width of the teacher, and both maps through a batch norm."""

    def loss(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        student, weight = (
            case.tensor(name, dtype).requires_grad_() for name in ('student', 'param/conv.weight')
        )
        teacher, temperature = case.tensor('teacher', dtype), case.arguments['tau']
        value = cwd_loss(F.conv2d(student, weight), teacher, temperature, standardise=True)
        return case.arguments['loss_weight'] * value, student, weight

    value, student, weight = loss(torch.float64)
    grad_student, grad_weight = torch.autograd.grad(value, [student, weight])
    settings = dict(dims=(0, 2, 3), eps=1e-5, unbiased=False, eps_on='variance')
    return {
        'loss': value,
        'loss_f32': loss(torch.float32)[0],
        'grad_student': grad_student,
        'grad_param/conv.weight': grad_weight,
        'student_normed': standardised(F.conv2d(student, weight), **settings),
        'teacher_normed': standardised(case.tensor('teacher'), **settings),
    }


CIRKD = ('cirkd_baselines.npz', 'CriterionCWD')
REPLAYS = {'cwd.npz': replay_cwd, 'rtmdet_kd.npz': replay_rtmdet, CIRKD: replay_cirkd}
INPUTS = {
    'cwd.npz': {'student', 'teacher'},
    'rtmdet_kd.npz': {'student', 'teacher', 'param/conv.weight'},
    CIRKD: {'student', 'teacher', 'param/conv.weight'},
}
