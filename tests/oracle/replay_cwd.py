"""Channel-wise distillation."""

from __future__ import annotations

import torch
from torch import Tensor

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


REPLAYS = {'cwd.npz': replay_cwd}
INPUTS = {'cwd.npz': {'student', 'teacher'}}
