"""What is compared on shared regions, as its equations read, to be measured against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from benchmarks.reference_logits import plain_dist, plain_dkd
from kd_dense.losses import dist_loss, dkd_loss, roi_box_loss

__all__ = ['cases']

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_boxes(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What ``roi_box_loss`` gives: it picks the regions of objects."""
    classes = student.shape[1] // 4
    chosen = torch.nonzero(labels < classes).squeeze(1)
    ours, theirs = (x.view(len(x), classes, 4)[chosen, labels[chosen]] for x in (student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction='sum') / len(chosen)


def _on_maps(plain: Loss) -> Loss:
    """Rows as the positions of a map, which the references of logits take."""

    def call(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        s, t = (x.T[None, :, :, None] for x in (student, teacher))
        return plain(s, t, labels[None, :, None])

    return call


# The loss, the plain one, what they are, columns for a class and beyond them; goals.
MEMBERS: dict[str, tuple[Loss, Loss, str, int, float, float]] = {
    'dkd': (dkd_loss, _on_maps(plain_dkd), 'DKD, 1,024 regions', 1, 1.5, 0.9),
    'dist': (
        lambda s, t, _: dist_loss(s, t), _on_maps(plain_dist), 'DIST, 1,024 regions', 1, 0.5, 1.2,
    ),
    'boxes': (roi_box_loss, plain_boxes, 'offsets of 1,024 regions', 4, 0.5, 1.2),
}  # fmt: skip


def make(name: str, device: str, small: bool) -> Pair:
    ours, plain, _, columns, *_ = MEMBERS[name]
    classes, regions = (3, 12) if small else (80, 1024)
    width = columns * classes + (columns == 1)
    student, teacher = make_maps((regions, width), device, small, (regions, width))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes + 1, (regions,), generator=generator).to(device)
    return Pair(
        forward_backward(lambda: ours(student, teacher, labels), [student]),
        forward_backward(lambda: plain(student, teacher, labels), [student]),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case(f'rois-{name}', what, partial(make, name), goal_speed=speed, goal_memory=memory)
        for name, (_, _, what, _, speed, memory) in MEMBERS.items()
    ]
