"""Localization distillation: box distributions, on upright and rotated boxes, and features."""

from kd_dense.losses.ld.head_targets import HeadTargets
from kd_dense.losses.ld.imitation import LDImitationLoss
from kd_dense.losses.ld.ld import LDLoss, ld_loss
from kd_dense.losses.ld.rotated import RotatedLDLoss, rotated_ld_loss

__all__ = [
    'HeadTargets',
    'LDImitationLoss',
    'LDLoss',
    'RotatedLDLoss',
    'ld_loss',
    'rotated_ld_loss',
]
