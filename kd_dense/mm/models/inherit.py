"""Start parts of the student from the teacher's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.taps import near_names

__all__ = ['check_inherit', 'fits', 'fitting', 'inherit_parts']


def check_inherit(student: nn.Module, teacher: nn.Module, parts: Sequence[str]) -> None:
    """Make sure that every part exists in both models and that something of it fits.

    Args:
        student: The model that inherits.
        teacher: The model that it inherits from.
        parts: Names of modules, as in ``named_modules()``.

    Raises:
        ValueError: If a part is missing in one of the models, or nothing of it fits.
    """
    if isinstance(parts, str):
        raise ValueError(f'expected inherit as a list of parts, got the text {parts!r}')
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"expected inherit as a list of parts, as ['neck'], got {parts!r}")
    for part in parts:
        for whose, model in (('student', student), ('teacher', teacher)):
            names = [name for name, _ in model.named_modules() if name]
            if part not in names:
                raise ValueError(
                    f'inherit: the {whose} {type(model).__name__} has no part {part!r}, '
                    f'{near_names(part, names)}'
                )
        if not fits(student, teacher, part):
            raise ValueError(
                f'inherit: nothing of {part!r} fits: all shapes or names differ between '
                'student and teacher; leave it out'
            )


def fits(student: nn.Module, teacher: nn.Module, part: str) -> bool:
    """Whether any weight of a part of the student fits the teacher's."""
    return bool(fitting(student, teacher, part)[0])


@torch.no_grad()
def inherit_parts(student: nn.Module, teacher: nn.Module, parts: Sequence[str]) -> None:
    """Copy the teacher's weights into the student wherever name and shape agree, and report.

    Where a head of the student has the teacher's classes and new ones behind them, the weights of
    the teacher's are copied, and those of the new ones are left as they are.

    Args:
        student: The model that inherits.
        teacher: The model that it inherits from, weights loaded.
        parts: Names of modules that [`check_inherit`][] has accepted.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    for part in parts:
        found, left_out = fitting(student, teacher, part)
        for name in found:
            rows = (
                ours[name]
                if ours[name].shape == theirs[name].shape
                else (ours[name][: len(theirs[name])])
            )
            rows.copy_(theirs[name])
        report = f'inherited {len(found)} of {len(found) + len(left_out)} tensors of {part}'
        if left_out:
            report += '; not inherited: ' + ', '.join(left_out)
        print_log(report, logger='current')


def fitting(student: nn.Module, teacher: nn.Module, part: str) -> tuple[list[str], list[str]]:
    """Split the student's tensors of a part into those that fit and, with reason, the rest.

    Args:
        student: The student.
        teacher: The teacher.
        part: Name of a module.

    Returns:
        Names of those that fit; names of the others, with the reason in words.
    """
    theirs = teacher.state_dict()
    found, left_out = [], []
    for name, tensor in student.state_dict().items():
        if not name.startswith(f'{part}.'):
            continue
        if name not in theirs:
            left_out.append(f'{name} (not in the teacher)')
        elif theirs[name].shape != tensor.shape and not _grown(student, name, theirs[name]):
            shapes = f'{tuple(tensor.shape)} here, {tuple(theirs[name].shape)} in the teacher'
            left_out.append(f'{name} ({shapes})')
        else:
            found.append(name)
    return found, left_out


def _grown(student: nn.Module, name: str, theirs: Tensor) -> bool:
    """Whether a tensor of the student has a row for each old class first, as the teacher's."""
    ours, path = student.state_dict()[name], name.split('.')
    owners = [student.get_submodule('.'.join(path[:depth])) for depth in range(1, len(path))]
    old = {getattr(owner, 'old_classes', None) for owner in owners} - {None}
    return theirs.dim() > 0 and {len(theirs)} == old and ours.shape[1:] == theirs.shape[1:]
