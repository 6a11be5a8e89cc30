"""Relations: SP, CCKD, PKT, batch and class correlation, ICKD, AICSD, NST, RKD, CIRKD, DSD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.losses import (
    CCKDLoss,
    CrossImageLoss,
    ICKDLoss,
    NSTLoss,
    PKTLoss,
    RelationLoss,
    SPLoss,
    cwd_loss,
    pair_wise_loss,
    rkd_loss,
)
from tests.oracle.replay_mimic import Loss, Tensors, _levels, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case


def _images(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Embeddings ``(B, D)`` as maps of one position."""
    return tensors['student'][..., None, None], tensors['teacher'][..., None, None]


def _positions(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Logits ``(B, K)`` as the positions of one image."""
    return tensors['student'].T[None, :, :, None], tensors['teacher'].T[None, :, :, None]


def _similarity(case: Case, tensors: Tensors) -> Tensor:
    return SPLoss()(tensors['student'], tensors['teacher'])[None]


def _torchdistill_sp(case: Case, tensors: Tensors) -> Tensor:
    assert case.arguments == {'reduction': 'batchmean'}
    return SPLoss(rows='l1')(tensors['student'], tensors['teacher'])


def _cckd(case: Case, tensors: Tensors) -> Tensor:
    config = dict(case.arguments['kernel_config'])
    options = dict(kernel=config.pop('type'))
    if config:
        options.update(gamma=config['gamma'], order=config['max_p'])
    return CCKDLoss(**options)(*_images(tensors))


def _batch_correlation(case: Case, tensors: Tensors) -> Tensor:
    temperature = case.arguments['temperature']
    loss = RelationLoss(1.0, 'images', 'none', 'row', 'classes', temperature)
    return loss(*_images(tensors))


def _class_correlation(case: Case, tensors: Tensors) -> Tensor:
    temperature = case.arguments['temperature']
    loss = RelationLoss(1.0, 'channels', 'none', 'row', 'classes', temperature)
    return loss(*_positions(tensors))


def _pkt(case: Case) -> Tensors:
    found = replay(case, lambda case, tensors: PKTLoss()(*_images(tensors)))
    return {**found, 'loss_repdistiller': found['loss']}


def _ickd(case: Case) -> Tensors:
    """The authors', with a convolution and a norm for the student, and others that are unused."""

    def loss(case: Case, tensors: Tensors) -> Tensor:
        weight, *affine = (
            tensors[f'param/embed_s.{name}']
            for name in ('conv2d.weight', 'l2norm.weight', 'l2norm.bias')
        )
        student = F.conv2d(tensors['student'], weight)
        student = F.batch_norm(student, None, None, *affine, training=True)
        unused = sum(x.sum() for n, x in tensors.items() if n.startswith('param/embed_t.'))
        return ICKDLoss()(student, tensors['teacher']) + 0 * unused

    return replay(case, loss)


def _channel_similarity(case: Case, tensors: Tensors) -> Tensor:
    """Their divisor has the number of images twice."""
    student = tensors['student']
    return ICKDLoss(case.arguments['weight'])(student, tensors['teacher']) / len(student)


def _channel_windows(case: Case, tensors: Tensors) -> Tensor:
    """Their divisor has the number of images twice, and that of the windows not at all."""
    windows = case.arguments['n'], case.arguments['m']
    loss = ICKDLoss(float(windows[0] * windows[1]), windows=windows)
    return loss(tensors['student'], tensors['teacher']) / len(tensors['student'])


def _classes(case: Case, tensors: Tensors) -> Tensor:
    return ICKDLoss(case.arguments['ic_lambda'])(tensors['student'], tensors['teacher'])


def _pixels(case: Case, tensors: Tensors) -> Tensor:
    """Their mean is over the classes, too."""
    student = tensors['student']
    value = cwd_loss(student, tensors['teacher'], norm='spatial')
    return case.arguments['pi_lambda'] * value / student.shape[1]


def _pairs(case: Case, tensors: Tensors) -> Tensor:
    value = pair_wise_loss(tensors['student'], tensors['teacher'], 0.5)
    return case.arguments['pa_lambda'] * value


def _nst(case: Case, tensors: Tensors) -> Tensor:
    """They bring maps of different size to a square."""
    values = []
    for student, teacher in _levels(tensors):
        side = min(student.shape[2], teacher.shape[2])
        maps = (
            x if x.shape[2] == side else F.adaptive_avg_pool2d(x, side) for x in (student, teacher)
        )
        values.append(NSTLoss()(*maps))
    return torch.stack(values).sum()


def _rkd(part: str) -> Loss:
    def loss(case: Case, tensors: Tensors) -> Tensor:
        return rkd_loss(*_images(tensors))[part] * {'distance': 25, 'angle': 50}[part]

    return loss


def _mini_batch(case: Case, tensors: Tensors) -> Tensor:
    loss = CrossImageLoss(temperature=case.arguments['temperature'])
    return loss(tensors['student'], tensors['teacher'])


def _structural(case: Case, tensors: Tensors) -> Tensor:
    """Pair-wise distillation with a gradient through the norm, of maps pooled by 2."""
    maps = (F.max_pool2d(tensors[name], 2, ceil_mode=True) for name in ('student', 'teacher'))
    return RelationLoss(1.0, 'positions', 'none', 'mean', 'unit')(*maps)


LOSSES: dict[tuple[str, str], Loss] = {
    ('relations.npz', 'Similarity (SP)'): _similarity,
    ('relations.npz', 'SPKDLoss (torchdistill)'): _torchdistill_sp,
    ('relations.npz', 'CCKDLoss (torchdistill)'): _cckd,
    ('relations.npz', 'bc_loss (batch correlation)'): _batch_correlation,
    ('relations.npz', 'cc_loss (class correlation)'): _class_correlation,
    ('ickd.npz', 'ChSimLoss (torchdistill)'): _channel_similarity,
    ('ickd.npz', 'Distiller.ch_loss (TaT-seg)'): _channel_windows,
    ('aicsd.npz', 'Distiller, term ic'): _classes,
    ('aicsd.npz', 'Distiller, term pi'): _pixels,
    ('aicsd.npz', 'Distiller, term pa'): _pairs,
    ('nst.npz', 'NSTLoss'): _nst,
    ('mmrazor_losses.npz', 'DistanceWiseRKD'): _rkd('distance'),
    ('mmrazor_losses.npz', 'AngleWiseRKD'): _rkd('angle'),
    ('cirkd.npz', 'CriterionMiniBatchCrossImagePair'): _mini_batch,
    ('cirkd_baselines.npz', 'CriterionStructuralKD'): _structural,
}
REPLAYS = {key: lambda case, loss=loss: replay(case, loss) for key, loss in LOSSES.items()} | {
    ('relations.npz', 'cosine_similarity_loss (PKT)'): _pkt,
    ('ickd.npz', 'ICKDLoss'): _ickd,
}
INPUTS = dict.fromkeys(REPLAYS, is_input)
