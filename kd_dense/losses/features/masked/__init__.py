"""Imitation under a mask: FRS, DeFeat, FGFI."""

from kd_dense.losses.features.masked.masked import DeFeatLoss, FGFILoss, FRSLoss, masked_loss
from kd_dense.losses.features.masked.masks import Anchors

__all__ = ['Anchors', 'DeFeatLoss', 'FGFILoss', 'FRSLoss', 'masked_loss']
