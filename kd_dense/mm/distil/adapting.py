"""How a map of the student is given the shape of the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from kd_dense.adapters import Adapter, resize
from kd_dense.losses import DistillLoss
from kd_dense.mm.distil.fields import build_adapter

__all__ = ['Fitting']

Shape = tuple[int, ...]


class Fitting(NamedTuple):
    """What a term says of adapters, and its loss of the maps that it takes.

    Attributes:
        name: The name of the term.
        loss: Its loss.
        adapter: Its field of that name.
        adaptable: Whether an adapter may lie between student and teacher.
        on_rois: Whether what is compared are rows of RoIs.
    """

    name: str
    loss: DistillLoss
    adapter: bool | Mapping[str, Any]
    adaptable: bool
    on_rois: bool

    def adapter_for(self, student: Shape, teacher: Shape) -> nn.Module:
        """The adapter from a shape of the student to one of the teacher.

        Raises:
            ValueError: If they differ, and there may or can be none.
        """
        custom = isinstance(self.adapter, Mapping)
        if not custom and self.agree(student, teacher):
            return nn.Identity()
        self._check_adaptable(student, teacher)
        if not isinstance(self.adapter, Mapping):
            return Adapter(student[1], student[1] if self.loss.any_channels else teacher[1])
        config = {'in_channels': student[1], 'out_channels': teacher[1], **self.adapter}
        return cast(nn.Module, build_adapter(self.name, config))

    def agree(self, student: Shape, teacher: Shape) -> bool:
        """Whether the loss can compare maps of these shapes as they are."""
        if len(student) == len(teacher) == 4 or (self.on_rois and len(student) == len(teacher)):
            first = 4 if self.loss.any_size else 2 if self.loss.any_channels else 1
            return student[first:] == teacher[first:]
        return student == teacher

    def resized(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A map without an adapter, of the size of the teacher's.

        Raises:
            ValueError: If sizes differ, and it may not be resized.
        """
        ours, theirs = tuple(student.shape), tuple(teacher.shape)
        if self.agree(ours, theirs):
            return student
        try:
            self._check_adaptable(ours, theirs)
        except ValueError as error:
            raise ValueError(
                f'{error}. They do agree on other images: pad these to a multiple of the strides '
                'of both models, with data_preprocessor.pad_size_divisor (size_divisor in mmseg)'
            ) from None
        return resize(student, theirs[2:])

    def _check_adaptable(self, student: Shape, teacher: Shape) -> None:
        """Make sure that one map can and may be given the shape of another one."""
        shapes = f'the student map has shape {student}, the teacher map {teacher}'
        kind = type(self.loss).__name__
        self.check_no_adapter()
        if not self.adaptable:
            raise ValueError(
                f'term {self.name!r}: {shapes}, and {kind} compares maps of one shape only: tap '
                'the heads themselves, and give student and teacher heads of the same layout'
            )
        if not self.adapter:
            raise ValueError(
                f'term {self.name!r}: {shapes}, and adapter=False; remove it, or tap where '
                'the shapes agree'
            )
        if len(student) != 4 or len(teacher) != 4:
            raise ValueError(
                f'term {self.name!r}: {shapes}; there is an adapter for maps (N, C, H, W) '
                'only, and for tokens (N, L, C) that are those of an image: tap where the shapes '
                'agree'
            )

    def check_no_adapter(self) -> None:
        """Raise ``ValueError`` where the loss takes no adapter, and the term has one."""
        if not self.adaptable and isinstance(self.adapter, Mapping):
            raise ValueError(
                f'term {self.name!r}: {type(self.loss).__name__} takes no adapter; leave it out'
            )
