"""Tokens of a transformer, put into the places of the image that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_dense.adapters import map_size, tokens_to_map
from kd_dense.mm.models.probe import Yield

__all__ = ['as_maps', 'for_each_branch', 'shapes_as_maps']

Shape = Sequence[int]


def as_maps(
    student: Sequence[Tensor], teacher: Sequence[Tensor], image: Shape, features: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Turn tokens ``(N, L, C)`` into maps ``(N, C, H, W)``; all else stays as it is.

    Args:
        student: What a tap yields in the student.
        teacher: What it yields in the teacher.
        image: Height and width of the images.
        features: Whether both taps lie in backbone or neck. What has the shape of tokens is tokens
            there; elsewhere it may be queries, and is so only beside a map of the other side.
    """
    sizes = _sizes([x.shape for x in student], [x.shape for x in teacher], image, features)
    ours, theirs = (
        [
            x if size is None else tokens_to_map(x, size)
            for x, size in zip(maps, found, strict=True)
        ]
        for maps, found in zip((student, teacher), sizes, strict=True)
    )
    return ours, theirs


def shapes_as_maps(
    student: Yield, teacher: Yield, image: Shape, features: bool
) -> tuple[Yield, Yield]:
    """The shapes of what [`as_maps`][] makes of what has these shapes."""
    sizes = _sizes(student.shapes, teacher.shapes, image, features)
    ours, theirs = (
        one._replace(
            shapes=[
                shape if size is None else (shape[0], shape[2], *size)
                for shape, size in zip(one.shapes, found, strict=True)
            ]
        )
        for one, found in zip((student, teacher), sizes, strict=True)
    )
    return ours, theirs


def _sizes(
    student: Sequence[Shape], teacher: Sequence[Shape], image: Shape, features: bool
) -> tuple[list[tuple[int, int] | None], list[tuple[int, int] | None]]:
    """Height and width of the map that each tensor of both sides becomes, if it becomes one."""

    def found(ours: Sequence[Shape], theirs: Sequence[Shape]) -> list[tuple[int, int] | None]:
        others = [*theirs, *[()] * (len(ours) - len(theirs))]
        return [
            map_size(shape[1], image)
            if len(shape) == 3 and (features or len(other) == 4)
            else None
            for shape, other in zip(ours, others, strict=False)
        ]

    return found(student, teacher), found(teacher, student)


def for_each_branch(teacher: Tensor, images: int) -> Tensor:
    """Repeat the teacher's map where the student sees each image in several branches.

    TridentNet trains so: its maps hold all images of the first branch, then those of the next.
    """
    if images == len(teacher) or images % len(teacher):
        return teacher
    times = images // len(teacher)
    return teacher.repeat(times, *[1] * (teacher.dim() - 1))
