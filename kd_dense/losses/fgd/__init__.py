"""Focal and global knowledge distillation: maps on and off objects, attention and relation."""

from kd_dense.losses.fgd.fgd import (
    FGDLoss,
    GlobalContext,
    attentions,
    fgd_loss,
    mean_activations,
)
from kd_dense.losses.fgd.masks import box_masks

__all__ = [
    'FGDLoss',
    'GlobalContext',
    'attentions',
    'box_masks',
    'fgd_loss',
    'mean_activations',
]
