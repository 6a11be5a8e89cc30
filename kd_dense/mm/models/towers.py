"""The towers of a dense head: its convolutions, and the head without the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_dense.functional import without_autocast
from kd_dense.losses.predictions.crosskd import aligned
from kd_dense.mm.models.probe import replicate
from kd_dense.taps import tensors_in

__all__ = ['RestOfHead', 'Tower', 'find_tower']

TOWERS = ('cls_convs', 'reg_convs')


class Tower(NamedTuple):
    """A place in the towers of a head.

    Attributes:
        tap: What yields its maps: those of the class tower, level by level, then those of the box
            tower, behind the activation of their layer; or those of the neck.
        convs: How many convolutions of each tower lie before it.
    """

    tap: str
    convs: int


def find_tower(model: nn.Module, head: str, whose: str, at: int) -> Tower:
    """Find a place in the towers of a dense head.

    Args:
        model: A detector.
        head: The name of its dense head.
        whose: ``'student'`` or ``'teacher'``, for errors.
        at: Behind how many convolutions; 0 is behind the neck, and -1 before the last one.

    Raises:
        ValueError: If there are no towers of convolutions, or not so many.
    """
    module: Any = dict(model.named_modules()).get(head)
    stacks = [stack for tower in _towers(module) for stack in tower]
    if not stacks or not all(_is_conv(layer) for stack in stacks for layer in stack):
        raise ValueError(
            f'cross_at: the {whose} {type(model).__name__} has no towers of convolutions at '
            f"{head!r}: expected a dense head with cls_convs and reg_convs, lists of mmcv's "
            'ConvModule, as GFL, ATSS, FCOS and RetinaNet have'
            + (f', got {type(module).__name__}' if module is not None else '')
        )
    most = min(map(len, stacks))
    if not -most <= at <= most:
        raise ValueError(
            f'cross_at={at}: the towers of the {whose} {type(model).__name__} have {most} '
            f'convolutions: expected {-most} to {most}'
        )
    count = at if at >= 0 else most + at
    if count == 0:
        before, dot, _ = head.rpartition('.')
        return Tower(f'{before}{dot}neck', 0)
    levels = '*.' * (len(_towers(module)[0]) > 1)
    return Tower(f'{head}.{"|".join(TOWERS)}.{levels}{count - 1}', count)


def _towers(head: Any) -> list[list[Sequence[nn.Module]]]:
    """Of each tower its layers: one stack for all levels, or one for each."""
    towers: list[Any] = [getattr(head, name, None) for name in TOWERS]
    if not all(isinstance(tower, nn.ModuleList) and len(tower) for tower in towers):
        return []
    return [[*tower] if isinstance(tower[0], nn.ModuleList) else [tower] for tower in towers]


def _is_conv(layer: Any) -> bool:
    return hasattr(layer, 'with_norm') and tuple(getattr(layer, 'order', ()))[-1:] == ('act',)


class RestOfHead:
    """A teacher's dense head without the first convolutions of its towers.

    It belongs to the teacher: copies share it, and a pickle leaves it out.

    Args:
        head: The head, in eval mode and frozen.
        count: How many convolutions of each tower are left out.
    """

    def __init__(self, head: nn.Module, count: int) -> None:
        self.head: Any = head
        self.count = count

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Let features of the student through the rest of the head.

        Args:
            student: What comes out of as many convolutions of the student's towers, as
                [`find_tower`][] finds it, of the teacher's width.
            teacher: The same of the teacher: its channels lend the student's theirs mean and
                spread.

        Returns:
            What the head predicts. The gradient flows to the student.
        """
        if self.head is None:
            raise RuntimeError(
                'this student was unpickled, which leaves its teacher behind: build it from '
                'its config to go on training'
            )
        head, parameter = self.head, next(self.head.parameters())
        if parameter.device != student[0].device:  # to try something out beside a training
            head = replicate(head, str(student[0].device)).float()
            parameter = next(head.parameters())
        plain = parameter.dtype == torch.float32
        # A channel that a ReLU keeps shut has no spread to divide by: its gradient would be huge,
        # and go nowhere.
        maps = [aligned(s * (s != 0), t) for s, t in zip(student, teacher, strict=True)]
        with nullcontext() if plain else without_autocast(parameter):
            maps = [m if plain else m.to(parameter.dtype) for m in maps]
            if self.count == 0:
                return [*tensors_in(head.forward(tuple(maps)))]
            levels = len(maps) // 2
            with _fed(head, self.count, (maps[:levels], maps[levels:])):
                return [*tensors_in(head.forward(tuple(maps[:levels])))]

    def __deepcopy__(self, memo: object) -> RestOfHead:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return RestOfHead, (None, self.count)


@contextmanager
def _fed(head: Any, count: int, maps: Sequence[Sequence[Tensor]]) -> Iterator[None]:
    """Put maps in the place of what the first convolutions of each tower yield."""
    changed: dict[nn.Module, Any] = {}

    def put(layer: Any, forward: Callable[[Tensor], Tensor]) -> None:
        changed.setdefault(layer, layer.__dict__.get('forward'))
        layer.forward = forward

    try:
        for tower, levels in zip(_towers(head), maps, strict=True):
            coming = [iter(levels)] if len(tower) == 1 else [iter([level]) for level in levels]
            for stack, source in zip(tower, coming, strict=True):
                for layer in stack[: count - 1]:
                    put(layer, _same)
                put(stack[count - 1], _next_of(source, stack[count - 1]))
        yield
    finally:
        for layer, before in changed.items():
            if before is None:
                del layer.__dict__['forward']
            else:
                layer.__dict__['forward'] = before


def _same(x: Tensor) -> Tensor:
    return x


def _next_of(source: Iterator[Tensor], layer: Any) -> Callable[[Tensor], Tensor]:
    """What a layer yields for each level: maps whose mean has moved go through its activation."""

    def forward(x: Tensor) -> Tensor:
        found = next(source)
        return layer.activate(found) if layer.with_activation else found

    return forward
