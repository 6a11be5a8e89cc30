"""Read what the student's dense head computed for its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses.ld.head_targets import HeadTargets
from kd_dense.mm.batches.boxes import plain, upright

__all__ = ['check', 'read']

SUPPORTED = (
    'GFL, ATSS, FCOS, RetinaNet or RTMDet, the heads of kd_dense with distributions, or one '
    'derived from them'
)


def check(student: Any, teacher: Any) -> None:
    """Make sure that both dense heads predict for the same priors and classes.

    Args:
        student: A detector of mmdet.
        teacher: Another one.

    Raises:
        ValueError: If one of them has no dense head; if the targets of the student's head cannot
            be read; or if classes, strides or anchors differ.
    """
    for whose, model in (('student', student), ('teacher', teacher)):
        head = getattr(model, 'bbox_head', None)
        if not hasattr(head, 'prior_generator'):
            found = f'the head {type(head).__name__}' if head else 'no bbox_head'
            raise ValueError(
                f'the {whose} {type(model).__name__} has {found}, but what is compared is what '
                f'dense heads predict for their priors; expected one of {SUPPORTED}'
            )
    ours, theirs = _layout(student.bbox_head), _layout(teacher.bbox_head)
    for what, value in ours.items():
        if value != theirs[what]:
            raise ValueError(
                f'the head of the student has {what} {value}, that of the teacher '
                f'{theirs[what]}; their predictions can be compared only where both agree: '
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
        'bins': getattr(head, 'bins', None),
    }


def _first_centre(generator: Any) -> tuple[float, ...]:
    """Where distances are measured from at the first position, in pixels."""
    priors = generator.grid_priors([(1, 1)] * len(generator.strides), device='cpu')
    return tuple(upright(priors[0])[0].view(-1, 2).mean(0).tolist())


def _places(head: Any) -> tuple[int, int | None]:
    """Where labels and label weights stand in what ``get_targets`` returns."""
    from mmdet.models import dense_heads as heads

    places = {  # by the class that the method is from
        heads.FCOSHead: (0, None),
        heads.GFLHead: (1, 2),
        heads.ATSSHead: (1, 2),
        heads.RTMDetHead: (1, 2),
        heads.AnchorHead: (0, 1),
    }
    # These inherit it, and assign in another way.
    others = (heads.DDODHead, heads.FreeAnchorRetinaHead, heads.FSAFHead)
    for cls in type(head).__mro__:
        if isinstance(head, others) or 'get_targets' not in vars(cls):
            continue
        if cls in places:
            return places[cls]
        if cls.__module__.startswith('mmdet.'):
            break
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
    centerness = None
    if weight_place is None:
        sides = [x.reshape(images, -1, 4) for x in returned[1]]
        centerness = [
            torch.where(x < head.num_classes, _centerness(d), 0)
            for x, d in zip(labels, sides, strict=True)
        ]
    boxes = [plain(sample.gt_instances.bboxes) for sample in data_samples]
    return HeadTargets(
        priors=priors,
        labels=labels,
        label_weights=weights,
        valid=valid,
        boxes=[upright(b) for b in boxes],
        num_classes=head.num_classes,
        strides=[int(stride) for stride, _ in generator.strides],
        centerness=centerness,
        rotated=boxes if boxes[0].shape[1] == 5 else None,
    )


def _centerness(distances: Tensor) -> Tensor:
    """How near to the middle of a box points are that lie in it, of ``(..., 4)`` distances."""
    opposite = distances.unflatten(-1, (2, 2))  # left and top, right and bottom
    ratios = opposite.amin(-2) / opposite.amax(-2)
    found: Tensor = ratios.prod(-1).sqrt()
    return found


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
