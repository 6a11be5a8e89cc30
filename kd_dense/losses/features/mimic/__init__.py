"""Mimicry: two maps are compared position by position, as they are or normalised first."""

from kd_dense.losses.features.mimic.fbkd import FBKDLoss, fbkd_loss
from kd_dense.losses.features.mimic.members import (
    CosineLoss,
    FitNetsLoss,
    FTLoss,
    NFDLoss,
    PKDLoss,
    VkDLoss,
)
from kd_dense.losses.features.mimic.mimic import MimicLoss, mimic_loss

__all__ = [
    'CosineLoss',
    'FBKDLoss',
    'FTLoss',
    'FitNetsLoss',
    'MimicLoss',
    'NFDLoss',
    'PKDLoss',
    'VkDLoss',
    'fbkd_loss',
    'mimic_loss',
]
