"""Losses of mmrazor 1.x, with the connectors before them, as terms of a recipe.

Formulas and defaults are those of open-mmlab/mmrazor (Apache-2.0). The forms of ours that equal
them are compared in ``tests/mm/mmrazor/test_losses.py`` and in the oracle lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kd_dense.mm.configs import type_name
from kd_dense.mm.mmrazor.connectors import (
    adapter,
    check_batch_norm,
    conv_module,
    kept,
    settings,
)
from kd_dense.mm.mmrazor.note import CannotError

__all__ = ['LOSSES', 'REASONS', 'Given', 'Rule', 'Term']

Config = Mapping[str, Any]
# The pool that mmcv's non-local block has of its own; the connector puts another one behind it.
OWN_POOL = 2


class Given(NamedTuple):
    """What a loss is to be built for.

    Attributes:
        loss: Its arguments.
        student: The connector behind the student's record, if there is one.
        teacher: That behind the teacher's.
        in_dense_head: Whether the student's record lies in the head of a dense detector.
        batch_size: Images of a process.
    """

    loss: dict[str, Any]
    student: Config | None = None
    teacher: Config | None = None
    in_dense_head: bool = False
    batch_size: int = 1


class Term(NamedTuple):
    """The fields of a term beside its tap.

    Attributes:
        loss: Config of a loss of ours.
        adapter: As in a term.
        remark: How it differs, if it does, from what mmrazor meant or computed.
        changed: Whether that is more than the way a batch is split over processes.
    """

    loss: dict[str, Any]
    adapter: bool | dict[str, Any] = True
    remark: str = ''
    changed: bool = False


class Rule(NamedTuple):
    """How a loss is translated.

    Attributes:
        student: What its ``forward`` calls the student's record.
        teacher: What it calls the teacher's.
        term: From what is given, the fields of a term; raises ``CannotError``.
        labels: Arguments of labels, which losses of ours get by themselves.
    """

    student: str
    teacher: str
    term: Callable[[Given], Term]
    labels: tuple[str, ...] = ()


def _weighted(kind: str, weight: float, **arguments: Any) -> dict[str, Any]:
    """Config of a loss of ours; arguments that are None are left to their defaults."""
    chosen = {name: value for name, value in arguments.items() if value is not None}
    return dict(type=kind, weight=weight, **chosen)


def _unless(value: Any, default: Any) -> Any:
    return None if value == default else value


def _adapter(given: Given) -> bool | dict[str, Any]:
    return adapter(given.student, given.teacher)


def _cwd(given: Given) -> Term:
    found = settings(given.loss, tau=1.0, loss_weight=1.0)
    loss = _weighted('CWDLoss', found['loss_weight'], temperature=_unless(found['tau'], 1))
    kinds = [type_name(c) for c in (given.student, given.teacher)]
    if kinds[1] != 'NormConnector':
        return Term(loss, _adapter(given))
    # The recipe of RTMDet: both maps behind a batch norm that learns nothing.
    if given.student is None or kinds[0] not in ('ConvModuleConnector', 'NormConnector'):
        raise CannotError('its NormConnector changes the map of the teacher alone')
    ours: bool | dict[str, Any] = True
    if kinds[0] == 'NormConnector':
        norm = given.student['norm_cfg']
    else:
        norm, channels = conv_module({**given.student, 'bias': True})  # the norm takes it away
        ours = kept(channels)
    assert given.teacher is not None
    for one in (norm, given.teacher['norm_cfg']):
        if one is None:
            raise CannotError('its NormConnector changes the map of the teacher alone')
        check_batch_norm(one, affine=False)
    return Term(dict(loss, standardise=True), ours, _BATCH)


def _kl(given: Given) -> Term:
    found = settings(
        given.loss, tau=1.0, reduction='batchmean', loss_weight=1.0, teacher_detach=True
    )
    # mmengine takes the mean of a loss that is a map.
    per = dict(batchmean='image', mean='entry', none='entry').get(found['reduction'])
    if per is None:
        raise CannotError(
            f'reduction={found["reduction"]!r} grows with the size of the batch; take '
            "reduction='batchmean' and a weight times the images of a process"
        )
    loss = _weighted(
        'KDLoss',
        found['loss_weight'],
        temperature=_unless(found['tau'], 1),
        per=per,
        valid_only=False,
        sigmoid=_softmax(given),
    )
    return Term(loss, _adapter(given))


def _softmax(given: Given) -> bool | None:
    """Of a dense detector it must be said that its logits are to be taken for one softmax."""
    return False if given.in_dense_head else None


def _l1(given: Given) -> Term:
    found = settings(given.loss, loss_weight=1.0, size_average=None, reduce=None, reduction='mean')
    if found['reduction'] == 'sum' or found['size_average'] is False:
        raise CannotError('a sum over the batch grows with its size; take the mean')
    if found['reduction'] not in ('mean', 'none'):
        raise CannotError(f'torch has no l1_loss with reduction={found["reduction"]!r}')
    return Term(_weighted('FitNetsLoss', found['loss_weight'], distance='l1'), _adapter(given))


def _l2(given: Given) -> Term:
    found = settings(
        given.loss, loss_weight=1.0, normalize=True, mult=1.0, div_element=False, dist=False
    )
    weight, remark = found['loss_weight'], ''
    scale = found['mult'] if found['normalize'] else 1
    if found['dist']:
        reduction, remark = 'root', _BATCH
        weight *= scale * math.sqrt(given.batch_size)  # here the sum is over N before the root
    else:
        reduction = 'mean' if found['div_element'] else 'image'
        weight *= scale**2
    loss = _weighted(
        'MimicLoss' if found['normalize'] or found['dist'] else 'FitNetsLoss',
        weight,
        norm='map' if found['normalize'] else None,
        reduction=_unless(reduction, 'mean'),
    )
    return Term(loss, _adapter(given), remark)


def _pkd(given: Given) -> Term:
    found = settings(given.loss, loss_weight=1.0, resize_stu=True)
    if not found['resize_stu']:
        raise CannotError(
            'resize_stu=False resizes the map of the teacher where sizes differ, and here it is '
            'that of the student'
        )
    return Term(_weighted('PKDLoss', found['loss_weight']), _adapter(given), _BATCH)


def _ft(given: Given) -> Term:
    found = settings(given.loss, loss_weight=1.0)
    return Term(_weighted('FTLoss', found['loss_weight']), _adapter(given))


def _mgd(given: Given) -> Term:
    weight = settings(given.loss, alpha_mgd=2e-5)['alpha_mgd']
    if given.student is None:  # without a connector nothing is masked, nor generated
        return Term(_weighted('FitNetsLoss', weight, reduction='image'), _adapter(given))
    if type_name(given.student) not in ('MGDConnector', 'MGDConncetor') or given.teacher:
        raise CannotError('MGDLoss is carried over with an MGDConnector for the student alone')
    found = settings(
        given.student, student_channels=0, teacher_channels=0, lambda_mgd=0.65,
        mask_on_channel=False, init_cfg=None,
    )  # fmt: skip
    loss = _weighted(
        'MGDLoss',
        weight,
        mask_ratio=found['lambda_mgd'],
        mask_over='channels' if found['mask_on_channel'] else None,
    )
    return Term(loss)


def _fbkd(given: Given) -> Term:
    found = settings(
        given.loss, mask_l2_weight=7e-5, channel_weight=4e-3, spatial_weight=4e-3,
        nonloacl_weight=7e-5, loss_weight=1.0,
    )  # fmt: skip
    kinds = [type_name(one) for one in (given.student, given.teacher)]
    if kinds != ['FBKDStudentConnector', 'FBKDTeacherConnector']:
        raise CannotError('FBKDLoss stands behind FBKDStudentConnector and FBKDTeacherConnector')
    ours, theirs = (_non_local(one) for one in (given.student, given.teacher) if one is not None)
    if ours != theirs:
        raise CannotError('the connectors of student and teacher differ in their arguments')
    loss = _weighted(
        'FBKDLoss',
        found['loss_weight'],
        masked=_unless(found['mask_l2_weight'], 7e-5),
        channel=_unless(found['channel_weight'], 4e-3),
        spatial=_unless(found['spatial_weight'], 4e-3),
        relation=_unless(found['nonloacl_weight'], 7e-5),
        temperature=_unless(ours['spatial_T'], 0.5),
        # Here a root is that of a mean over the images, as of a batch of so many.
        published_batch=_unless(given.batch_size, 2),
        reductions=(ours['reduction'],),
        pools=(OWN_POOL * ours['maxpool_stride'] if ours['sub_sample'] else 1,),
    )
    return Term(loss, True, _BATCH)


def _non_local(connector: Config) -> dict[str, Any]:
    found = settings(
        connector, in_channels=0, reduction=2, conv_cfg=dict(type='Conv2d'),
        norm_cfg=dict(type='BN'), mode='dot_product', sub_sample=False, maxpool_stride=2,
        zeros_init=True, spatial_T=0.5, channel_T=0.5, init_cfg=None,
    )  # fmt: skip
    for name, value in dict(mode='dot_product', zeros_init=True, conv_cfg=dict(type='Conv2d'),
                            norm_cfg=dict(type='BN')).items():  # fmt: skip
        if found[name] != value:
            raise CannotError(f'its connector has {name}={found[name]!r}; here it is {value!r}')
    return {n: found[n] for n in ('reduction', 'sub_sample', 'maxpool_stride', 'spatial_T')}


def _dist(given: Given) -> Term:
    found = settings(
        given.loss, inter_loss_weight=1.0, intra_loss_weight=1.0, tau=1.0, loss_weight=1.0,
        teacher_detach=True,
    )  # fmt: skip
    loss = _weighted(
        'DISTLoss',
        found['loss_weight'],
        inter=_unless(found['inter_loss_weight'], 1),
        intra=_unless(found['intra_loss_weight'], 1),
        temperature=_unless(found['tau'], 1),
        sigmoid=_softmax(given),
    )
    remark = (
        "mmrazor's DISTLoss is made for one row of logits an image; on maps its second part "
        'correlates the images of a batch at each position. Written is DIST as its authors have '
        'it for segmentation: over all positions'
    )
    return Term(loss, _adapter(given), remark, changed=True)


def _dkd(given: Given) -> Term:
    found = settings(
        given.loss, tau=1.0, alpha=1.0, beta=1.0, reduction='batchmean', loss_weight=1.0
    )
    loss = _weighted(
        'DKDLoss',
        found['loss_weight'],
        alpha=_unless(found['alpha'], 1),
        beta=found['beta'],
        temperature=_unless(found['tau'], 1),
        # torch lets size_average=False, which mmrazor passes too, win over mean and none
        reduction=None if found['reduction'] == 'batchmean' else 'sum',
    )
    return Term(loss, _adapter(given), _rows('DKDLoss'), changed=True)


def _wsld(given: Given) -> Term:
    found = settings(given.loss, tau=1.0, loss_weight=1.0, num_classes=1000)
    loss = _weighted('WSLDLoss', found['loss_weight'], temperature=found['tau'])
    return Term(loss, _adapter(given), _rows('WSLD'), changed=True)


def _at(given: Given) -> Term:
    found = settings(given.loss, loss_weight=1.0)
    return Term(_weighted('ATLoss', found['loss_weight']), _adapter(given))


def _rkd(part: str, published: float) -> Callable[[Given], Term]:
    def term(given: Given) -> Term:
        found = settings(given.loss, loss_weight=published, with_l2_norm=True)
        weights = {'distance_weight': 0.0, 'angle_weight': 0.0, part: found['loss_weight']}
        loss = dict(type='RKDLoss', **weights, over_norm=found['with_l2_norm'])
        return Term(loss, _adapter(given), _BATCH)

    return term


def _rows(kind: str) -> str:
    return (
        f"mmrazor's {kind} is made for one row of logits an image and stops on maps. Written is "
        'the same of each pixel with its label, and the mean over those that have one'
    )


_BATCH = (
    'with several processes, what it adds up over the batch is that of all of them; in mmrazor '
    'each process has its own'
)
_GENERATED = 'data-free distillation makes its images, and here they come from a data set'
# Losses without a counterpart, and why.
REASONS = {
    'ABLoss': 'activation boundaries are for the layers of classifiers, and are not in kd_dense',
    'ActivationLoss': _GENERATED,
    'CRDLoss': 'contrastive representation distillation (CRD) contrasts the images of a data set '
    'of classes, and is not in kd_dense',
    'InformationEntropyLoss': _GENERATED,
    'KDSoftCELoss': 'it is made for one row of logits an image: on maps its softmax is along '
    'their width; take KDLoss',
    'OFDLoss': 'overhaul feature distillation (OFD) is for the layers of classifiers, and is not '
    'in kd_dense',
    'OnehotLikeLoss': _GENERATED,
}
_PREDS, _FEATURES = ('preds_S', 'preds_T'), ('s_feature', 't_feature')
LOSSES = {
    'ATLoss': Rule(*_FEATURES, _at),
    'AngleWiseRKD': Rule(*_PREDS, _rkd('angle_weight', 50.0)),
    'ChannelWiseDivergence': Rule(*_PREDS, _cwd),
    'DISTLoss': Rule('logits_S', 'logits_T', _dist),
    'DKDLoss': Rule(*_PREDS, _dkd, ('gt_labels', 'data_samples')),
    'DistanceWiseRKD': Rule(*_PREDS, _rkd('distance_weight', 25.0)),
    'FBKDLoss': Rule('s_input', 't_input', _fbkd),
    'FTLoss': Rule(*_FEATURES, _ft),
    'KLDivergence': Rule(*_PREDS, _kl),
    'L1Loss': Rule(*_FEATURES, _l1),
    'L2Loss': Rule(*_FEATURES, _l2),
    'MGDLoss': Rule(*_PREDS, _mgd),
    'PKDLoss': Rule(*_PREDS, _pkd),
    'WSLD': Rule('student', 'teacher', _wsld, ('gt_labels', 'data_samples')),
}
