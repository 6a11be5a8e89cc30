"""Replays the recorded cases of localization distillation (LD)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kd_dense.losses import HeadTargets, LDImitationLoss, ld_loss
from kd_dense.losses.ld.imitation import general_instances, imitation_loss
from kd_dense.losses.ld.ld import mean_kl
from kd_dense.losses.ld.regions import (
    box_overlaps,
    fine_grained_region,
    inside_region,
    vlr_region,
)
from tests.oracle.lane import Case

PRECISIONS = (('', torch.float64), ('_f32', torch.float32))


def replay_losses(case: Case) -> dict[str, Tensor]:
    """Rows of logits, and rows of features."""

    def loss(student: Tensor, dtype: torch.dtype) -> Tensor:
        teacher, arguments = case.tensor('teacher', dtype), case.arguments
        if case.cls == 'IMLoss':  # weight, avg_factor and reduction have no effect there
            maps = (x.T[None, :, None] for x in (student, teacher))
            everywhere = torch.ones(1, len(student), dtype=torch.bool)
            student, teacher = maps
            return arguments['loss_weight'] * imitation_loss([student], [teacher], [everywhere])
        rows = mean_kl(student, teacher, arguments['T'], dim=1)
        if arguments['with_weight']:
            rows = rows * case.tensor('weight', dtype)
        rows = rows * arguments['loss_weight']
        reduction = arguments['reduction_override'] or arguments['reduction']
        if reduction == 'none':
            return rows
        divisor = (arguments['avg_factor'] or len(rows)) if reduction == 'mean' else 1
        return rows.sum() / divisor

    student = case.tensor('student').requires_grad_()
    value = loss(student, torch.float64)
    (grad,) = torch.autograd.grad(value.sum(), student)
    single = loss(case.tensor('student', torch.float32), torch.float32)
    return {'loss': value, 'grad_student': grad, 'loss_f32': single}


def replay_vlr(case: Case) -> dict[str, Tensor]:
    """Regions from anchors and boxes, with the DIoU of the code and that of the paper."""
    found = {}
    sizes = case.arrays['num_level_anchors'].tolist()
    valid = torch.ones(1, sum(sizes), dtype=torch.bool)
    topk = case.arguments['topk']
    for suffix, dtype in PRECISIONS:
        boxes = [case.tensor('gt_bboxes', dtype)]
        anchors = case.tensor('anchors', dtype).split(sizes)
        (found['region' + suffix],) = vlr_region(anchors, valid, boxes, topk, 'code')
    boxes = [case.tensor('gt_bboxes')]
    anchors = case.tensor('anchors').split(sizes)
    (found['region_textbook'],) = vlr_region(anchors, valid, boxes, topk)
    (found['im_finegrained'],) = fine_grained_region(anchors, valid, boxes).double()
    (found['im_box'],) = inside_region(anchors, valid, boxes).double()
    overlaps = box_overlaps(torch.cat(anchors), boxes[0][None])
    official = box_overlaps(torch.cat(anchors), boxes[0][None], 'code')
    found['iou'], found['diou_textbook'] = overlaps.iou[0].T, overlaps.diou[0].T
    found['diou_official'] = official.diou[0].T
    return found


# What the authors' heads multiply into the loss configs.
VARIANTS: dict[str, dict[str, Any]] = {
    'LDHead': {},
    'LDATSSHead': {'vlr_factor': 4},
    'LDFCOSHead': {'vlr_factor': 4, 'region': 'inside'},
    'LDRetinaHead': {'vlr_factor': 4, 'vlr_on_positives': False, 'joint_sides': True},
}
VLR_SHARE = {'LDHead': 1.0, 'LDATSSHead': 0.15, 'LDFCOSHead': 0.25, 'LDRetinaHead': 0.03}
NAMES = {
    'LDHead': {'main': 'loss_ld', 'vlr': 'loss_ld_vlr', 'kd': 'loss_kd', 'kd_vlr': 'loss_kd_neg'},
    'LDATSSHead': {'main': 'loss_ld', 'vlr': 'loss_ld_neg', 'kd': 'loss_cls_kd'},
    'LDFCOSHead': {'main': 'loss_ld', 'vlr': 'loss_ld_neg', 'kd': 'loss_cls_kd'},
    'LDRetinaHead': {'main': 'loss_ld', 'vlr': 'loss_ld_vlr', 'kd': 'loss_cls_kd'},
}


def replay_heads(case: Case) -> dict[str, Tensor]:
    """All losses of a head, level by level."""
    found = _replay_head(case, '', torch.float64)
    single = _replay_head(case, '_f32', torch.float32)
    return found | {key: value for key, value in single.items() if '_f32' in key}


def _replay_head(case: Case, suffix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    classes, boxes, targets = (
        _maps(case, 'cls_scores', dtype),
        _maps(case, 'bbox_preds', dtype),
        None,
    )
    teacher = _maps(case, 'soft_label', dtype) + _maps(case, 'soft_target', dtype)
    for x in classes + boxes:
        x.requires_grad_()
    targets = _targets(case, dtype)
    arguments = _arguments(case)
    valid = torch.cat(targets.valid, 1)
    rule = arguments['region']
    if case.cls == 'LDRetinaHead':
        # Anchors of one position are equally far from a box: which of them are the topk is not
        # defined, so that the manifest calls the region an input.
        rule = _maps(case, 'region', dtype)
    elif case.cls != 'LDFCOSHead':
        weights = vlr_region(targets.priors, valid, targets.boxes, 9, 'code')
        rule = list(weights.split(targets.sizes, 1))
    if not isinstance(rule, str):
        found |= {f'region/{level}': weights for level, weights in enumerate(rule)}

    sums = dict.fromkeys(NAMES[case.cls].values(), torch.zeros((), dtype=dtype))
    for level in range(len(classes)):
        parts = ld_loss(
            [classes[level], boxes[level]],
            [teacher[level], teacher[len(classes) + level]],
            _level(targets, level),
            **arguments | {'region': rule if isinstance(rule, str) else [rule[level]]},
        )
        for part, name in NAMES[case.cls].items():
            found[f'{name}{suffix}/{level}'] = parts[part]
            sums[name] = sums[name] + parts[part]
    whole = ld_loss([*classes, *boxes], teacher, targets, **arguments | {'region': rule})
    for part, name in NAMES[case.cls].items():
        torch.testing.assert_close(whole[part], sums[name])
        kind, inputs = ('cls_scores', classes) if 'kd' in part else ('bbox_preds', boxes)
        found |= _gradients(whole[part], name, kind, inputs)
    if 'loss_im' in case.arguments:
        found |= _replay_imitation(case, suffix, dtype, [*classes, *boxes], teacher, targets)
    return found


def _replay_imitation(
    case: Case,
    suffix: str,
    dtype: torch.dtype,
    student: list[Tensor],
    teacher: list[Tensor],
    targets: HeadTargets,
) -> dict[str, Tensor]:
    method = case.arguments['imitation_method']
    loss = LDImitationLoss(
        case.arguments['loss_im']['loss_weight'],
        region=method,
        positive_levels_only=True,
        mix_images=True,
    )
    valid = torch.cat(targets.valid, 1)
    rule = fine_grained_region if method == 'finegrained' else inside_region
    region = rule(targets.priors, valid, targets.boxes).to(dtype).split(targets.sizes, 1)
    found = {f'im_region/{level}': members for level, members in enumerate(region)}

    if method == 'gibox':
        region = general_instances(student, teacher, targets, mix_images=True)
    positive = targets.positive.split(targets.sizes, 1)

    features, taught = _maps(case, 'x', dtype), _maps(case, 'teacher_x', dtype)
    total = torch.zeros((), dtype=dtype)
    for level, (ours, theirs) in enumerate(zip(features, taught, strict=True)):
        ours.requires_grad_()
        members = (region[level] > 0) & positive[level].any()
        value = loss.weight * imitation_loss([ours], [theirs], [members])
        found[f'loss_im{suffix}/{level}'] = value
        total = total + value
    whole = loss(features, taught, targets, (student, teacher) if method == 'gibox' else None)
    torch.testing.assert_close(whole, total)
    return found | _gradients(whole, 'loss_im', 'x', features)


def _gradients(value: Tensor, name: str, kind: str, inputs: list[Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    return {
        f'grad/{name}/{kind}/{level}': torch.zeros_like(x) if grad is None else grad
        for level, (x, grad) in enumerate(zip(inputs, grads, strict=True))
    }


def _arguments(case: Case) -> dict[str, Any]:
    config = case.arguments
    vlr = config.get('loss_ld_vlr', config['loss_ld'])
    return {
        'main_weight': config['loss_ld']['loss_weight'],
        'vlr_weight': VLR_SHARE[case.cls] * vlr['loss_weight'],
        'kd_weight': config['loss_kd']['loss_weight'],
        'temperature': config['loss_ld']['T'],
        'kd_temperature': config['loss_kd']['T'],
        'published_batch': None,
        'region': 'vlr',
        'diou': 'code',
        **VARIANTS[case.cls],
    }


def _maps(case: Case, name: str, dtype: torch.dtype) -> list[Tensor]:
    count = sum(key.startswith(f'{name}/') for key in case.arrays)
    return [case.tensor(f'{name}/{level}', dtype) for level in range(count)]


def _targets(case: Case, dtype: torch.dtype) -> HeadTargets:
    shapes = [x.shape for x in _maps(case, 'cls_scores', dtype)]
    images = shapes[0][0]
    config = case.arguments
    strides = config['strides'] if 'strides' in config else config['anchor_generator']['strides']
    if case.cls == 'LDFCOSHead':
        priors = [_points(*shape[2:], s, dtype) for shape, s in zip(shapes, strides, strict=True)]
    elif case.cls == 'LDRetinaHead':
        sizes = [x.shape[1] for x in _maps(case, 'labels', dtype)]
        priors = [torch.zeros(size, 4, dtype=dtype) for size in sizes]  # the region is given
    else:
        priors = [x[0] for x in _maps(case, 'anchors', dtype)]
    # The labels of the FCOS head are in one row, image by image.
    labels = [x.view(images, -1) for x in _maps(case, 'labels', torch.int64)]
    weights = _maps(case, 'label_weights', dtype) or [torch.ones(x.shape) for x in labels]
    return HeadTargets(
        priors=priors,
        labels=labels,
        label_weights=weights,
        valid=[torch.ones(x.shape, dtype=torch.bool) for x in labels],
        boxes=_maps(case, 'gt_bboxes', dtype),
        num_classes=config['num_classes'],
        strides=strides,
    )


def _points(height: int, width: int, stride: int, dtype: torch.dtype) -> Tensor:
    y, x = torch.meshgrid(
        torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing='ij'
    )
    return torch.stack([x, y], -1).view(-1, 2) * stride + stride // 2


def _level(targets: HeadTargets, level: int) -> HeadTargets:
    return targets._replace(
        priors=targets.priors[level : level + 1],
        labels=targets.labels[level : level + 1],
        label_weights=targets.label_weights[level : level + 1],
        valid=targets.valid[level : level + 1],
        strides=targets.strides[level : level + 1],
    )


HEAD_INPUTS = {
    *('cls_scores', 'bbox_preds', 'centernesses', 'soft_label', 'soft_target', 'x', 'teacher_x'),
    *('gt_bboxes', 'gt_labels', 'img_shape', 'pad_shape', 'num_total_samples', 'anchors'),
    *('labels', 'label_weights', 'bbox_targets', 'bbox_weights'),
    # The detector's own losses, recorded for context.
    *('loss_cls', 'loss_bbox', 'loss_dfl', 'loss_centerness'),
}


def _is_head_input(name: str) -> bool:
    return name.split('/')[0].removesuffix('_f32') in HEAD_INPUTS


REPLAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    'ld_losses.npz': replay_losses,
    'ld_vlr.npz': replay_vlr,
    'ld_heads.npz': replay_heads,
}
INPUTS: dict[str, set[str] | Callable[[str], bool]] = {
    'ld_losses.npz': {'student', 'teacher', 'weight'},
    # The assignment of the same assigner is there to compare with, no loss of ours makes it.
    'ld_vlr.npz': {
        'anchors',
        'num_level_anchors',
        'gt_bboxes',
        'assigned_gt_inds',
        'max_overlaps',
    },
    'ld_heads.npz': _is_head_input,
}
