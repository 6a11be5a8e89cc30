"""BCKD and ADL, CrossKD, PGD: recorded cases of what dense heads predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kd_dense.functional import soft_kl
from kd_dense.losses import (
    CrossKDLoss,
    HeadTargets,
    PKDLoss,
    adl_loss,
    bckd_loss,
    crosskd_loss,
    pgd_box_loss,
    pgd_class_loss,
)
from kd_dense.losses.base import MMDET_EPS
from kd_dense.losses.ld.ld import largest_score
from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_deltas,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from kd_dense.losses.predictions.crosskd import aligned, crosskd_rows
from kd_dense.losses.predictions.heads import focal_difference
from kd_dense.losses.predictions.key_regions import KeyRegions, key_regions
from kd_dense.mm.batches import head_targets
from kd_dense.mm.models.towers import RestOfHead, find_tower
from kd_dense.taps import Taps, tensors_in
from tests.oracle.lane import Case


def both(replay: Callable[[Case, torch.dtype], dict[str, Tensor]]) -> Any:
    """Replay in float64, and in float32 what was recorded so."""

    def replays(case: Case) -> dict[str, Tensor]:
        single = {f'{k}_f32': v for k, v in replay(case, torch.float32).items()}
        return replay(case, torch.float64) | single

    return replays


def level_targets(
    images: int, priors: Tensor, classes: int, labels: Tensor, weights: Tensor, stride: int = 1
) -> HeadTargets:
    """The targets of one level; boxes do not matter."""
    return HeadTargets(
        priors=[priors],
        labels=[labels.view(images, -1)],
        label_weights=[weights.view(images, -1)],
        valid=[torch.ones(images, labels.numel() // images, dtype=torch.bool)],
        boxes=[torch.zeros(0, 4)] * images,
        num_classes=classes,
        strides=[stride],
    )


def distributions(priors: Tensor, stride: float, maps: Sequence[Tensor]) -> Decoded:
    """Boxes of box distributions on one level, in strides."""
    rows = rows_of_priors(maps[0], 1)
    return Decoded([priors], [decode_distances(priors / stride, expected_distances(rows))])


@both
def replay_bckd(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = case.arguments
    if case.cls == 'NovelKDLoss':
        student = case.tensor('student', dtype).requires_grad_()
        maps = ([x[:, :, None, None]] for x in (student, case.tensor('teacher', dtype)))
        rows = focal_difference(*maps, anchors=[1], beta=arguments['beta'])[:, 0]
        if 'weight' in case.arrays:
            rows = rows * case.tensor('weight', dtype)
        factor = arguments['avg_factor']
        loss = rows.mean() if factor is None else rows.sum() / (factor + MMDET_EPS)
        loss = arguments['loss_weight'] * loss
        (grad,) = torch.autograd.grad(loss, student)
        return {'loss': loss, 'grad_student': grad}
    names = [f'{whose}_{what}' for whose in ('student', 'teacher') for what in ('cls', 'box')]
    cls, box, *teacher = (case.tensor(name, dtype) for name in names)
    cls.requires_grad_(), box.requires_grad_()
    anchors = case.tensor('anchors', dtype)
    targets = level_targets(
        len(cls),
        anchors,
        arguments['num_classes'],
        case.tensor('labels', torch.int64),
        case.tensor('label_weights', dtype),
        arguments['stride'],
    )
    decode = partial(distributions, anchors, arguments['stride'])
    parts = bckd_loss(
        [cls, box],
        teacher,
        targets,
        HeadBoxes(decode, decode),
        normaliser=arguments['num_total_samples'],
    )
    loss = parts['classes'] + parts['boxes']
    grads = torch.autograd.grad(loss, [cls, box])
    return {
        'loss_cls_kd': parts['classes'],
        'loss_box_kd': parts['boxes'],
        'loss': loss,
        'grad_student_cls': grads[0],
        'grad_student_box': grads[1],
    }


@both
def replay_adl(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = case.arguments
    student = case.tensor('student', dtype).requires_grad_()
    q = case.tensor('teacher', dtype)  # probabilities
    labels = case.tensor('labels', torch.int64).permute(0, 2, 3, 1).flatten(1)
    targets = level_targets(
        len(labels),
        torch.zeros(labels.shape[1], 4, dtype=dtype),
        arguments['num_classes'],
        labels,
        (labels != arguments['ignored_label']).to(dtype),
    )
    adaptive = arguments['normaliser'] == 'power sum'
    call = partial(
        adl_loss,
        [student],
        [q.logit()],
        targets,
        alpha=arguments['alpha'],
        gamma=arguments['gamma'],
        entropy=arguments['beta'],
    )
    normaliser = None if adaptive else case.tensor('normaliser', dtype)
    loss = arguments['scale'] * call(normaliser=normaliser)
    (grad,) = torch.autograd.grad(loss, student)
    return {'loss': loss, 'grad_student': grad, 'power_sum': q.pow(1.8).sum()}


def replay_rows(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """A loss of rows, with mmdet's ways to average."""
    arguments = case.arguments
    student, teacher = (
        case.tensor('student', dtype).requires_grad_(),
        case.tensor('teacher', dtype),
    )
    factor = arguments['avg_factor']
    if case.cls == 'KDQualityFocalLoss':
        maps = ([x[:, :, None, None]] for x in (student, teacher))
        rows = focal_difference(*maps, anchors=[1], beta=arguments['beta'])[:, 0]
        entries = student.numel()
    elif case.cls == 'KnowledgeDistillationKLDivLoss':
        rows = soft_kl(student, teacher, arguments['T'], 1)
        rows = rows / (student.shape[1] if arguments['class_reduction'] == 'mean' else 1)
        entries = len(student)
    else:
        loss = arguments['loss_weight'] * PKDLoss()(student, teacher)
        return {'loss': loss, 'grad_student': torch.autograd.grad(loss, student)[0]}
    if case.what.get('with_weight', arguments.get('with_weight')):
        rows = rows * case.tensor('weight', dtype)
    total = rows.sum()
    if factor is not None:
        total = total / (factor + MMDET_EPS)
    elif arguments.get('reduction', 'mean') == 'mean':
        total = total / entries
    loss = arguments.get('loss_weight', 1.0) * total
    return {'loss': loss, 'grad_student': torch.autograd.grad(loss, student)[0]}


def replay_aligned(case: Case) -> dict[str, Tensor]:
    student = case.tensor('student').requires_grad_()
    out = aligned(student, case.tensor('teacher'))
    dot = (out * case.tensor('vector')).sum()
    return {'out': out, 'grad_student_of_dot': torch.autograd.grad(dot, student)[0]}


def head_of(case: Case, whose: str) -> Any:
    """A real head with the recorded parameters, in float64."""
    from mmengine.registry import MODELS

    import kd_dense.mm  # noqa: F401

    arguments = case.arguments
    width, strides = arguments['channels'], arguments['strides']
    gfl = case.cls == 'CrossKDGFL'
    own = (
        dict(type='GFLHead', reg_max=arguments['reg_max'], loss_cls=dict(
            type='QualityFocalLoss', use_sigmoid=True), norm_cfg=dict(type='GN', num_groups=2))
        if gfl
        else dict(type='RetinaHead', norm_cfg=None)
    )  # fmt: skip
    head: Any = MODELS.build(
        dict(
            _scope_='mmdet',
            num_classes=arguments['num_classes'],
            in_channels=width,
            feat_channels=width,
            stacked_convs=arguments['stacked_convs'],
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0] if gfl else [0.5, 1.0, 2.0],
                octave_base_scale=4,
                scales_per_octave=1,
                strides=strides,
            ),
            **own,
        )
    )
    head.double().eval()
    prefix = f'param/{whose}/'
    head.load_state_dict(
        {k.removeprefix(prefix): case.tensor(k) for k in case.arrays if k.startswith(prefix)},
        strict=False,
    )
    return head


def deltas(anchors: Sequence[Tensor], stds: Sequence[float], maps: Sequence[Tensor]) -> Decoded:
    rows = [
        rows_of_priors(m, len(a) // m[0, 0].numel()) for a, m in zip(anchors, maps, strict=True)
    ]
    return Decoded(
        [*anchors], [decode_deltas(a, x, stds=stds) for a, x in zip(anchors, rows, strict=True)]
    )


def replay_heads(case: Case) -> dict[str, Tensor]:
    """CrossKD with whole heads of mmdet: towers, the rest of the teacher's head, and the loss."""
    with patch.object(Tensor, 'float', Tensor.double):  # mmdet's heads cast what they predict
        return _replay_heads(case)


def _replay_heads(case: Case) -> dict[str, Tensor]:
    arguments, found = case.arguments, {}
    student, teacher = (head_of(case, whose) for whose in ('student', 'teacher'))
    teacher.requires_grad_(False)
    levels = range(len(arguments['strides']))
    features = [[case.tensor(f'{w}_feat/{i}') for i in levels] for w in ('student', 'teacher')]
    for x in features[0]:
        x.requires_grad_()
    wholes = [torch.nn.ModuleDict(dict(bbox_head=head)) for head in (student, teacher)]
    count = arguments['reused_teacher_head_idx']
    names = [find_tower(whole, 'bbox_head', 'model', count).tap for whole in wholes]
    taps, outputs = [Taps([name]) for name in names], []
    for tap, whole, maps in zip(taps, wholes, features, strict=True):
        with tap.on(whole):
            outputs.append([*tensors_in(whole.bbox_head(maps))])
    crossed = RestOfHead(teacher, count)(taps[0][names[0]], taps[1][names[1]])
    kinds = ('cls_score', 'bbox_pred')
    for whose, maps in (('stu', outputs[0]), ('tea', outputs[1]), ('reused', crossed)):
        for k, kind in enumerate(kinds):
            found |= {f'{whose}_{kind}/{i}': maps[k * len(levels) + i] for i in levels}

    gfl = case.cls == 'CrossKDGFL'
    weights = [case.tensor(f'label_weights/{i}') for i in levels]
    priors = [
        torch.zeros(w.shape[1], 4) if gfl else case.tensor(f'anchors/{i}')
        for i, w in enumerate(weights)
    ]
    labels = [torch.zeros(w.shape, dtype=torch.int64) for w in weights]
    whole = HeadTargets(
        priors, labels, weights, labels, [torch.zeros(0, 4)] * 2, 3, arguments['strides']
    )
    settings: dict[str, Any] = dict(divisor=arguments['avg_factor'])
    if gfl:
        settings.update(boxes='distributions', box_weight=4.0)
    decode = partial(deltas, priors, [1.0] * 4)
    parts = crosskd_rows(
        crossed, outputs[1], whole, HeadBoxes(decode, decode), **CROSSKD | settings
    )
    names = {'loss_cls_kd': 'classes', 'loss_reg_kd': 'boxes'}
    inputs = {f'student_feat/{i}': x for i, x in enumerate(features[0])}
    inputs |= {f'param/student/{k}': p for k, p in student.named_parameters()}
    for name, part in names.items():
        for i, rows in enumerate(parts[part].split(whole.sizes, 1)):
            found[f'{name}/{i}'] = rows.sum()
        grads = torch.autograd.grad(
            parts[part].sum(), [*inputs.values()], allow_unused=True, retain_graph=True
        )
        found |= {
            f'grad/{name}/{key}': grad
            for key, grad in zip(inputs, grads, strict=True)
            if grad is not None
        }
    scores = largest_score(outputs[1][: len(levels)], [len(p) // m[0, 0].numel() for p, m in zip(priors, outputs[1], strict=False)])  # fmt: skip  # noqa: E501
    found['reg_weight_sum'] = (scores * (torch.cat(weights, 1) > 0)).sum()
    return found


def replay_predicted(case: Case) -> dict[str, Tensor]:
    """CrossKD of what heads have predicted: one level of ATSS, all of FCOS."""
    atss = case.cls.startswith('CrossKDATSS')
    levels = [''] if atss else ['/0', '/1']
    kinds = ('cls_score', 'bbox_pred', 'centerness')
    ours, theirs = (
        [case.tensor(f'{w}_{kind}{i}') for kind in kinds for i in levels]
        for w in ('reused', 'tea')
    )
    for x in ours:
        x.requires_grad_()
    images = len(ours[0])
    priors = [case.tensor(f'{"anchors" if atss else "points"}{i}') for i in levels]
    labels = [case.tensor(f'labels{i}', torch.int64).view(images, -1) for i in levels]
    weights = [torch.ones(x.shape).double() for x in labels]
    classes = case.arguments['num_classes']
    centerness = None
    if atss:
        weights = [case.tensor('label_weights')]
        decode = partial(deltas, priors, case.arguments['target_stds'])
        settings = dict(centerness_weight=1.0, divisor=case.arguments['avg_factor'])
    else:
        sides = [case.tensor(f'bbox_targets{i}').view(images, -1, 4) for i in levels]
        centerness = [
            torch.where(x < classes, head_targets._centerness(d), 0)
            for x, d in zip(labels, sides, strict=True)
        ]

        def decode(maps: Sequence[Tensor]) -> Decoded:
            rows = [rows_of_priors(m, 1) for m in maps]
            return Decoded(
                priors, [decode_distances(p, x) for p, x in zip(priors, rows, strict=True)]
            )

        settings = dict(class_weight=0.4, box_weight=0.75, boxes='iou', normaliser='centerness')
    targets = HeadTargets(
        priors, labels, weights, labels, [torch.zeros(0, 4)] * images, classes, [8, 16],
        centerness,
    )  # fmt: skip
    parts = crosskd_loss(ours, theirs, targets, HeadBoxes(decode, decode), **settings)
    names = {'loss_cls_kd': 'classes', 'loss_reg_kd': 'boxes', 'loss_center_kd': 'centerness'}
    found = {}
    for index, (name, part) in enumerate(names.items()):
        found[name] = parts[part]
        inputs = ours[index * len(levels) : (index + 1) * len(levels)]
        grads = torch.autograd.grad(parts[part], inputs, retain_graph=True)
        found |= {
            f'grad/{name}/reused_{kinds[index]}{i}': g for i, g in zip(levels, grads, strict=True)
        }
    if centerness is not None:
        found['centerness_target_sum'] = torch.cat(centerness, 1).sum()
    return found


def replay_crosskd(case: Case) -> dict[str, Tensor]:
    if case.cls == 'align_scale':
        return replay_aligned(case)
    if case.cls.startswith('CrossKD'):
        return replay_predicted(case)
    return both(replay_rows)(case)


def one_level(case: Case, name: str, dtype: torch.dtype) -> list[Tensor]:
    return [case.tensor(name, dtype)[:, 0]] if name in case.arrays else []


@both
def replay_pgd(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = case.arguments
    if case.cls == 'PGWAnchorModule.assign':
        return replay_key_regions(case, dtype)
    student, teacher = (
        case.tensor('student', dtype).requires_grad_(),
        case.tensor('teacher', dtype),
    )
    weights = one_level(case, 'mask_fg', dtype)
    found = {}
    if case.cls == 'PGDRegLoss':
        parts = pgd_box_loss(
            [student], [teacher], KeyRegions(weights, weights),
            arguments['gamma'], arguments['delta'], arguments['temp'],
        )  # fmt: skip
        loss = parts['foreground'] + parts['attention']
    else:
        regions = KeyRegions(weights, one_level(case, 'mask_bg', dtype))
        maps = [student], [teacher], regions
        temperature = arguments['temp_s']
        one = pgd_class_loss(*maps, 1.0, 1.0, 1.0, temperature, mix_images=True)
        names = {'foreground': 'loss_fg', 'background': 'loss_bg', 'attention': 'loss_mask'}
        found = {names[part]: value for part, value in one.items()}
        factors = arguments['alpha'], arguments['beta'], arguments['delta']
        parts = pgd_class_loss(*maps, *factors, temperature, mix_images=True)
        level = arguments['loss_weight']  # of its level
        loss = level * (parts['foreground'] + parts['background']) + parts['attention']
    return found | {'loss': loss, 'grad_student': torch.autograd.grad(loss, student)[0]}


def replay_key_regions(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    names = ('bboxes', 'cls_scores', 'bbox_preds', 'gt_bboxes', 'noise')
    priors, scores, boxes, objects, noise = (case.tensor(name, dtype) for name in names)
    decoded = Decoded([priors], [boxes[None]])
    maps = [scores.T[None, :, None], boxes.T[None, :, None]]  # one row of positions
    found = key_regions(
        maps,
        HeadBoxes(lambda _: decoded, lambda _: decoded),
        [objects],
        [case.tensor('gt_labels', torch.int64)],
        trust=case.arguments['alpha'],
        topk=case.arguments['topk'],
        noise=noise[None],
    )
    return {'weight': found.weights[0].flatten(), 'background': found.background[0].flatten()}


def among(names: set[str]) -> Callable[[str], bool]:
    """Whether the name of an array, without level, is one of these."""
    return lambda name: name.split('/')[0] in names


CROSSKD: dict[str, Any] = CrossKDLoss().settings
CROSSKD_INPUTS = {
    *('student', 'teacher', 'weight', 'vector', 'student_feat', 'teacher_feat', 'label_weights'),
    *('tea_cls_score', 'tea_bbox_pred', 'tea_centerness', 'anchors', 'points', 'labels'),
    *('bbox_targets', 'gt_bboxes', 'gt_labels', 'stu_centerness', 'reused_centerness', 'param'),
}
WHOLE_HEADS = ('CrossKDGFL', 'CrossKDRetinaNet')


REPLAYS: dict[Any, Callable[[Case], dict[str, Tensor]]] = {
    'bckd.npz': replay_bckd,
    'adl.npz': replay_adl,
    'crosskd.npz': replay_crosskd,
    'pgd.npz': replay_pgd,
    **dict.fromkeys((('crosskd.npz', cls) for cls in WHOLE_HEADS), replay_heads),
}
INPUTS: dict[Any, set[str] | Callable[[str], bool]] = {
    'bckd.npz': {
        *('student', 'teacher', 'weight', 'student_cls', 'teacher_cls', 'student_box'),
        *('teacher_box', 'anchors', 'labels', 'label_weights', 'bbox_targets'),
    },
    # Un-scaled terms are summed here before they leave the loss.
    'adl.npz': {'student', 'teacher', 'labels', 'normaliser', 'loss_map'},
    'pgd.npz': {
        *('student', 'teacher', 'mask_fg', 'mask_bg', 'bboxes', 'cls_scores', 'bbox_preds'),
        *('gt_bboxes', 'gt_labels', 'noise'),
    },
    'crosskd.npz': among(
        CROSSKD_INPUTS
        | {f'{w}_{k}' for w in ('stu', 'reused') for k in ('cls_score', 'bbox_pred')}
    ),
    **dict.fromkeys((('crosskd.npz', cls) for cls in WHOLE_HEADS), among(CROSSKD_INPUTS)),
}
