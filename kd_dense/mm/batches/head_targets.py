"""Read what the student's dense head computed for its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses.ld import HeadTargets
from kd_dense.mm.batches.boxes import plain, upright

__all__ = ['check', 'read']

SUPPORTED = (
    'GFLHead of mmdet, DistributionATSSHead, DistributionFCOSHead, DistributionRetinaHead, '
    'DistributionRotatedRetinaHead and DistributionRotatedFCOSHead of kd_dense, and heads derived '
    'from them'
)


def check(student: Any, teacher: Any) -> None:
    """Make sure that both dense heads predict box distributions of the same kind.

    Args:
        student: A detector of mmdet.
        teacher: Another one.

    Raises:
        ValueError: If one of them has no dense head with box distributions; if the targets of
            the student's head cannot be read; or if classes, strides, anchors or bins differ.
    """
    for whose, model in (('student', student), ('teacher', teacher)):
        head = getattr(model, 'bbox_head', None)
        if not isinstance(getattr(head, 'reg_max', None), int):
            found = f'the head {type(head).__name__}' if head else 'no bbox_head'
            raise ValueError(
                f'the {whose} {type(model).__name__} has {found}, but localization distillation '
                'needs distributions of box sides (a head with reg_max); expected one of '
                f'{SUPPORTED}'
            )
    ours, theirs = _layout(student.bbox_head), _layout(teacher.bbox_head)
    for what, value in ours.items():
        if value != theirs[what]:
            raise ValueError(
                f'the head of the student has {what} {value}, that of the teacher '
                f'{theirs[what]}; their distributions can be compared only where both agree: '
                'train one of them with the layout of the other'
            )
    _places(student.bbox_head)


def _layout(head: Any) -> dict[str, Any]:
    generator = head.prior_generator
    return {
        'num_classes': head.num_classes,
        'strides': [tuple(stride) for stride in generator.strides],
        'anchors per position': generator.num_base_priors,
        'first centre': _first_centre(generator),
        'reg_max': head.reg_max,
        'bins': getattr(head, 'bins', None),
    }


def _first_centre(generator: Any) -> tuple[float, ...]:
    """Where distances are measured from at the first position, in pixels."""
    priors = generator.grid_priors([(1, 1)] * len(generator.strides), device='cpu')
    return tuple(upright(priors[0])[0].view(-1, 2).mean(0).tolist())


def _places(head: Any) -> tuple[int, int | None]:
    """Where labels and label weights stand in what ``get_targets`` returns."""
    from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead, RetinaHead

    if isinstance(head, FCOSHead):
        return 0, None
    if isinstance(head, (GFLHead, ATSSHead)):
        return 1, 2
    if isinstance(head, RetinaHead):
        return 0, 1
    raise ValueError(
        f'it is not known what {type(head).__name__}.get_targets returns; expected one of '
        f'{SUPPORTED}'
    )


def read(
    head: Any, returned: Sequence[Any], maps: Sequence[Tensor], data_samples: Sequence[Any]
) -> HeadTargets:
    """Read the targets of a step.

    Args:
        head: The student's dense head.
        returned: What its ``get_targets`` returned.
        maps: What its ``forward`` returned: the first maps are the class logits of each level.
        data_samples: Of the batch.

    Returns:
        The same, in the one form of all heads.
    """
    generator, images = head.prior_generator, len(data_samples)
    sizes = [tuple(m.shape[-2:]) for m in maps[: len(generator.strides)]]
    found = generator.grid_priors(sizes, dtype=torch.float32, device=maps[0].device)
    priors = [upright(level) for level in found]
    label_place, weight_place = _places(head)
    # FCOS puts the images of a level one after another.
    labels = [x.reshape(images, -1) for x in returned[label_place]]
    if weight_place is None:  # no prior is left out
        weights = [torch.ones_like(x, dtype=torch.float32) for x in labels]
        valid = [torch.ones_like(x, dtype=torch.bool) for x in labels]
    else:
        weights = returned[weight_place]
        valid = _valid(head, priors, sizes, data_samples)
    boxes = [plain(sample.gt_instances.bboxes) for sample in data_samples]
    return HeadTargets(
        priors=priors,
        labels=labels,
        label_weights=weights,
        valid=valid,
        boxes=[upright(b) for b in boxes],
        num_classes=head.num_classes,
        strides=[int(stride) for stride, _ in generator.strides],
        rotated=boxes if boxes[0].shape[1] == 5 else None,
    )


def _valid(
    head: Any, priors: list[Tensor], sizes: list[Any], data_samples: Sequence[Any]
) -> list[Tensor]:
    """Which anchors the head assigns at all: mmdet's rule, for all images at once."""
    device, border = priors[0].device, head.train_cfg['allowed_border']
    shapes = [(*s.metainfo['pad_shape'][:2], *s.metainfo['img_shape'][:2]) for s in data_samples]
    on_device = torch.tensor(shapes).to(device, non_blocking=True)
    height, width, inner_height, inner_width = on_device[:, :, None].unbind(1)
    valid = []
    for anchors, (rows, columns), (x, y) in zip(
        priors, sizes, head.prior_generator.strides, strict=True
    ):
        row_valid = torch.arange(rows, device=device) * y < height
        column_valid = torch.arange(columns, device=device) * x < width
        level = (row_valid[:, :, None] & column_valid[:, None]).flatten(1)
        level = level.repeat_interleave(len(anchors) // level.shape[1], 1)
        if border >= 0:
            left, top, right, bottom = anchors.unbind(1)
            level &= (left >= -border) & (top >= -border)
            level &= (right < inner_width + border) & (bottom < inner_height + border)
        valid.append(level)
    return valid
