"""Replays the recorded cases of IntRA-KD."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kd_dense.losses.intrakd.intrakd import intra_loss, region_affinities
from kd_dense.losses.intrakd.regions import region_masks, region_moments

if TYPE_CHECKING:
    from tests.oracle.lane import Case


def replay(case: Case) -> dict[str, Tensor]:
    arguments: dict[str, Any] = dict(case.arguments)
    arguments['ignore_index'] = arguments.pop('ignore_label')  # as the recorded cases call it
    regions = arguments.get('regions', 'dilate')
    classes, kernel, ignored = (
        arguments[name] for name in ('num_classes', 'kernel', 'ignore_index')
    )
    student = case.tensor('student').requires_grad_()
    teacher, label = case.tensor('teacher'), case.tensor('label', torch.int64)
    size = student.shape[-2:]

    masks = region_masks(label, size, classes, regions, kernel, ignored)
    result = {
        'aoi': masks.unflatten(-1, size),
        'present': (masks > 0).any(-1).long(),
    }
    for name, maps in (('student', student), ('teacher', teacher)):
        moments = region_moments(
            maps,
            masks,
            regions,
            arguments['pixels'],
            arguments['third_denominator'],
            arguments['eps'],
        )
        result[f'moments_{name}'] = moments
        result[f'affinity_{name}'] = region_affinities(moments, arguments['cos_eps'])

    result['loss_per_image'] = torch.stack(
        [
            intra_loss(student[i : i + 1], teacher[i : i + 1], label[i : i + 1], **arguments)
            for i in range(len(student))
        ]
    )
    result['loss'] = intra_loss(student, teacher, label, **arguments)
    (result['grad_student'],) = torch.autograd.grad(result['loss'], student)
    result['loss_f32'] = intra_loss(student.float(), teacher.float(), label, **arguments)
    return result


REPLAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {'intrakd.npz': replay}
INPUTS = {'intrakd.npz': {'student', 'teacher', 'label'}}
