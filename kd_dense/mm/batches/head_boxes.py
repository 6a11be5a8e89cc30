"""Make boxes of what dense heads yield."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_deltas,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from kd_dense.mm.batches.boxes import is_rotated

__all__ = ['check', 'read']


def check(student: Any, teacher: Any) -> None:
    """Make sure that both models have a dense head whose boxes are known.

    Args:
        student: A detector of mmdet.
        teacher: Another one.

    Raises:
        ValueError: If one of them has no head with priors, or one whose boxes are not known.
    """
    for whose, model in (('student', student), ('teacher', teacher)):
        head = getattr(model, 'bbox_head', None)
        if not hasattr(head, 'prior_generator'):
            raise ValueError(
                f'the {whose} {type(model).__name__} has no dense head (a bbox_head with a '
                'prior_generator), whose boxes could be compared'
            )
        if is_rotated(model):
            raise ValueError(
                f'the {whose} {type(model).__name__} predicts rotated boxes, and this loss '
                'compares upright ones'
            )
        if not isinstance(getattr(head, 'reg_max', None), int):
            _coder(head)


def read(student: Any, teacher: Any) -> HeadBoxes:
    """What makes boxes of the maps of two heads in this step.

    Args:
        student: A detector of mmdet.
        teacher: Another one.
    """
    return HeadBoxes(decoder(student.bbox_head), decoder(teacher.bbox_head))


def decoder(head: Any) -> Callable[[Sequence[Tensor]], Decoded]:
    """What makes boxes of the maps that a head yields, as long as it stays in the mode it is in.

    Args:
        head: A dense head of mmdet.
    """
    training = head.training  # some heads yield boxes in another unit then

    def decode(maps: Sequence[Tensor]) -> Decoded:
        generator = head.prior_generator
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        sizes = [tuple(m.shape[-2:]) for m in maps]
        priors = generator.grid_priors(sizes, dtype=dtype, device=maps[0].device)
        boxes = [
            _boxes(head, level, m, stride[0], training)
            for level, m, stride in zip(priors, maps, generator.strides, strict=True)
        ]
        return Decoded(priors, boxes)

    return decode


def _boxes(head: Any, priors: Tensor, maps: Tensor, stride: float, training: bool) -> Tensor:
    """The boxes of a level, ``(N, A, 4)``."""
    positions = maps.shape[-2] * maps.shape[-1]
    rows = rows_of_priors(maps, len(priors) // positions)
    upright = not hasattr(head, 'bins')  # ours for rotated boxes have five numbers
    if upright and isinstance(getattr(head, 'reg_max', None), int) and rows.shape[-1] > 4:
        return decode_distances(priors, stride * expected_distances(rows))
    coder = _coder(head)
    if hasattr(coder, 'stds'):
        return decode_deltas(
            priors,
            rows,
            coder.means,
            coder.stds,
            largest_shift=coder.ctr_clamp if coder.add_ctr_clamp else None,
        )
    in_strides = training and getattr(head, 'norm_on_bbox', False)
    return decode_distances(priors, rows * stride if in_strides else rows)


def _coder(head: Any) -> Any:
    """What a head makes boxes with, of deltas or of distances."""
    from mmdet.models import dense_heads as heads
    from mmdet.models.task_modules import coders

    coder = getattr(head, 'bbox_coder', None)
    predict = getattr(type(head), '_predict_by_feat_single', None)
    usual = predict is heads.base_dense_head.BaseDenseHead._predict_by_feat_single
    usual = usual or isinstance(head, (heads.PAAHead, heads.RTMDetHead))
    if usual and isinstance(coder, (coders.DeltaXYWHBBoxCoder, coders.DistancePointBBoxCoder)):
        return coder
    raise ValueError(
        f'it is not known how {type(head).__name__} makes boxes of what it yields; expected a '
        'head of mmdet that predicts distances of sides, as FCOS, deltas of anchors, as '
        'RetinaNet and ATSS, or distributions, as GFL'
    )
