"""Masked imitation: FRS and DeFeat of United Perception, DeFeat and FGFI of their authors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.losses import (
    DeFeatLoss,
    FGFILoss,
    FitNetsLoss,
    FRSLoss,
    MimicLoss,
    kd_loss,
    masked_loss,
)
from kd_dense.losses.features.masked.masked import _mean_under
from kd_dense.losses.features.masked.masks import Anchors, anchor_masks, object_masks
from tests.oracle.replay_mimic import Tensors, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case


def _named(tensors: Tensors, name: str) -> list[Tensor]:
    """The tensors of one name, level by level or image by image."""
    return [tensors[n] for n in tensors if n.rpartition('/')[0] == name]


def _adapted(tensors: Tensors, maps: Sequence[Tensor], name: str) -> list[Tensor]:
    """The student's maps behind the 3x3 convolutions of the authors, where there are any."""
    if f'param/{name}.0.0.weight' not in tensors:
        return list(maps)
    parameters = [[tensors[f'param/{name}.{i}.0.{k}'] for k in ('weight', 'bias')]
                  for i in range(len(maps))]  # fmt: skip
    return [F.conv2d(x, *p, padding=1) for x, p in zip(maps, parameters, strict=True)]


# FRS


def _frs(case: Case, tensors: Tensors) -> Tensors:
    loss = FRSLoss(features=case.arguments['neck_weight'], classes=case.arguments['pred_weight'])
    outputs = _named(tensors, 'student_logits'), _named(tensors, 'teacher_logits')
    student = _adapted(tensors, _named(tensors, 'student'), 'conv')
    parts = loss(student, _named(tensors, 'teacher'), outputs)
    return dict(loss_neck=parts['features'], loss_pred=parts['classes'])


# DeFeat, United Perception


def _defeat_coco_masks(case: Case, tensors: Tensors) -> list[Tensor]:
    boxes = [x[:, :4] for x in _named(tensors, 'boxes')]
    sizes = [x.shape[2:] for x in _named(tensors, 'student')]
    inclusive = bool(case.arguments['offset'])
    side = case.arguments['base_scale']
    return object_masks(boxes, sizes, case.arguments['strides'], inclusive, 1.0, side)


def _defeat_coco(case: Case, tensors: Tensors) -> Tensors:
    student, teacher = _named(tensors, 'student'), _named(tensors, 'teacher')
    masks = _defeat_coco_masks(case, tensors)
    whole = zip(*(_named(tensors, f'{x}_backbone') for x in ('student', 'teacher')), strict=True)
    squares = [FitNetsLoss()(s, t) for s, t in whole]
    weights = {n: case.arguments[f'{n}_weight'] for n in ('backbone', 'fg', 'bg')}
    return dict(
        loss_backbone=weights['backbone'] * torch.stack(squares).mean() / 2,
        loss_fg=weights['fg'] * masked_loss(student, teacher, masks, 'number') / 2 / len(masks),
        loss_bg=weights['bg']
        * masked_loss(student, teacher, [~m for m in masks], 'number')
        / 2
        / len(masks),
    )


def _plain_mimic(case: Case, tensors: Tensors) -> Tensor:
    pairs = zip(_named(tensors, 'student'), _named(tensors, 'teacher'), strict=True)
    loss = MimicLoss(norm='map', reduction='image')
    return torch.stack([loss(s, t) for s, t in pairs]).mean()


# DeFeat, its authors


def _defeat_masks(case: Case, tensors: Tensors) -> list[Tensor]:
    kind, strides = case.arguments['type'], case.arguments['strides']
    boxes = _named(tensors, 'boxes')
    sizes = [tuple(-(-side // s) for side in case.arguments['image_size']) for s in strides]
    if 'mask-bb' in kind:  # all objects, on the finest grid
        return object_masks(boxes, sizes[:1], strides[:1])
    if 'mask-neck-one' in kind:
        ones = torch.ones(len(boxes), 1, dtype=torch.bool)
        return [ones[:, :, None, None].expand(-1, -1, *size) for size in sizes]
    if 'mask-neck-gt' in kind:
        return object_masks(boxes, sizes, strides)
    laid = _named(tensors, 'anchors')
    each = [len(a) // (height * width) for a, (height, width) in zip(laid, sizes, strict=True)]
    anchors = Anchors([a[:n] for a, n in zip(laid, each, strict=True)], [(s, s) for s in strides])
    for index, (level, size) in enumerate(zip(laid, sizes, strict=True)):
        torch.testing.assert_close(anchors.at(index, size), level)
    return anchor_masks(boxes, sizes, anchors, inclusive=False)


def _defeat(case: Case, tensors: Tensors) -> Tensors:
    if 'head-cls' in case.arguments['type']:
        return _proposals(case, tensors)
    place = 'bb' if 'mask-bb' in case.arguments['type'] else 'neck'
    given = ['student', 'teacher'] if place == 'neck' else ['student_bb', 'teacher_bb']
    student, teacher = (_named(tensors, name) for name in given)
    student = _adapted(tensors, student, place)
    masks = _defeat_masks(case, tensors)
    if place == 'bb':
        student = [x.relu() for x in student]
        masks = [F.interpolate(masks[0].double(), x.shape[2:]).bool() for x in student]
    weights = [case.arguments.get(f'hint_{place}{x}_w', 0.0) for x in ('', '_back')]
    if 'L1' in case.arguments['type']:
        differences = [(s - t).abs() for s, t in zip(student, teacher, strict=True)]
        errors = [torch.where(d < 1, d, d.square()).sum(1, keepdim=True) for d in differences]
        value = _mean_under(errors, masks, [x.shape[1] for x in student])
        return {f'loss_{place}': weights[0] * value / 2 / len(masks)}
    if 'decouple' not in case.arguments['type']:
        value = masked_loss(student, teacher, masks, 'number')
        return {f'loss_{place}': weights[0] * value / 2 / len(masks)}
    loss = DeFeatLoss(objects=weights[0], background=weights[1])
    loss.masks = lambda *_: masks
    parts = loss(student, teacher, [], (0, 0))
    return {f'loss_{place}': parts['objects'], f'loss_{place}_back': parts['background']}


def _proposals(case: Case, tensors: Tensors) -> Tensors:
    """The part of the class logits of RoIs: softened KL, of some of them."""
    kind, labels = case.arguments['type'], tensors['labels'].long()
    student, teacher = tensors['cls_student'], tensors['cls_teacher']
    objects = labels != labels.max()
    taken = {
        'KL-decouple': [objects, ~objects],
        'KL-fore': [objects],
        'KL-back': [~objects],
        'KL-all': [objects | ~objects],
    }
    chosen = next((taken[name] for name in taken if name in kind), [teacher.argmax(1) == labels])
    parts = zip(('', '_back'), chosen, strict=False)
    return {
        f'loss_hcls{part}': case.arguments[f'head_cls{part}_w']
        * kd_loss(
            student,
            teacher,
            labels.where(rois, -1),
            temperature=case.arguments['head_cls_T'],
        )
        for part, rois in parts
    }


# FGFI


def _fgfi_mask(case: Case, tensors: Tensors) -> Tensor:
    size, count = tuple(tensors['student'].shape[2:]), int(tensors['num_anchors'])
    stride = case.arguments['feat_stride']
    anchors = Anchors([tensors['anchors'][:count]], [(stride, stride)])
    torch.testing.assert_close(anchors.at(0, size), tensors['anchors'])
    return anchor_masks(_named(tensors, 'boxes'), [size], anchors)[0]


def _fgfi(case: Case, tensors: Tensors) -> Tensor:
    weight, bias = (tensors[f'param/0.{name}'] for name in ('weight', 'bias'))
    student = F.conv2d(tensors['student'], weight, bias, padding=1).relu()
    mask = _fgfi_mask(case, tensors)
    loss = FGFILoss(case.arguments['weight'])
    with mock.patch('kd_dense.losses.features.masked.masked.anchor_masks', return_value=[mask]):
        return loss([student], [tensors['teacher']], [], Anchors([bias], [(1, 1)]))


def _parts(case: Case, found: Callable[[Case, Tensors], Tensors]) -> Tensors:
    """The sum of the parts, its gradients, and each part."""
    tensors = {n: case.tensor(n) for n in case.arrays}
    return {
        **replay(case, lambda *x: torch.stack([*found(*x).values()]).sum()),
        **found(case, tensors),
    }


def _replay_defeat(case: Case) -> Tensors:
    found = _parts(case, _defeat)
    if any(name.startswith('mask') for name in case.arrays):
        masks = _defeat_masks(case, {n: case.tensor(n) for n in case.arrays})
        names = [f'mask/{i}' for i in range(len(masks))]
        found |= zip(names, (m[:, 0].double() for m in masks), strict=True)
        found |= {'mask_bb': masks[0][:, 0].double()}
    return found


def _replay_defeat_coco(case: Case) -> Tensors:
    masks = _defeat_coco_masks(case, {n: case.tensor(n) for n in case.arrays})
    named = {f'mask/{i}': m[:, 0].double() for i, m in enumerate(masks)}
    return {**_parts(case, _defeat_coco), **named}


def _replay_fgfi(case: Case) -> Tensors:
    mask = _fgfi_mask(case, {n: case.tensor(n) for n in case.arrays})
    return {**replay(case, _fgfi), 'mask': mask[:, 0].double()}


REPLAYS = {
    ('frs.npz', 'FRS_Mimicker'): lambda case: _parts(case, _frs),
    ('defeat.npz', 'batch_processor_kd'): _replay_defeat,
    ('defeat_coco.npz', 'DeFeat_Mimicker'): _replay_defeat_coco,
    ('defeat_coco.npz', 'Base_Mimicker'): lambda case: replay(case, _plain_mimic),
    ('fgfi.npz', 'trainval_net_sup imitation loss'): _replay_fgfi,
}
INPUTS = dict.fromkeys(REPLAYS, lambda name: is_input(name) and not name.startswith('mask'))
