"""Class logits, position by position: distributions, their parts, and their correlations.

Two logits ``(N, K, H, W)`` are rows of K classes, one at each position, and so are ``(R, K)`` of
regions. All members compare rows, and take ``standardise``.
"""

from kd_dense.losses.logits.camkd import CAMKDLoss, camkd_loss
from kd_dense.losses.logits.dist import DISTLoss, dist_loss
from kd_dense.losses.logits.dkd import DKDLoss, GDKDLoss, dkd_loss, gdkd_loss
from kd_dense.losses.logits.incremental import (
    LwFLoss,
    UnbiasedKDLoss,
    lwf_loss,
    unbiased_cross_entropy,
    unbiased_kd_loss,
)
from kd_dense.losses.logits.kd import KDLoss, kd_loss
from kd_dense.losses.logits.nkd import NKDLoss, nkd_loss
from kd_dense.losses.logits.wsld import WSLDLoss, wsld_loss

__all__ = [
    'CAMKDLoss',
    'DISTLoss',
    'DKDLoss',
    'GDKDLoss',
    'KDLoss',
    'LwFLoss',
    'NKDLoss',
    'UnbiasedKDLoss',
    'WSLDLoss',
    'camkd_loss',
    'dist_loss',
    'dkd_loss',
    'gdkd_loss',
    'kd_loss',
    'lwf_loss',
    'nkd_loss',
    'unbiased_cross_entropy',
    'unbiased_kd_loss',
    'wsld_loss',
]
