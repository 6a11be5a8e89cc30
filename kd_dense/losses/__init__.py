"""Distillation losses, a file for each method or family. They need torch and nothing else."""

from kd_dense.losses.attention import AttentionMapLoss, attention_map_loss
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.cwd import CWDLoss, cwd_loss
from kd_dense.losses.fgd import FGDLoss, fgd_loss
from kd_dense.losses.intrakd import IntRALoss, intra_loss
from kd_dense.losses.ld import HeadTargets, LDLoss, ld_loss
from kd_dense.losses.ld_imitation import LDImitationLoss
from kd_dense.losses.skd import (
    HolisticLoss,
    PairWiseLoss,
    PixelWiseLoss,
    pair_wise_loss,
    pixel_wise_loss,
)

__all__ = [
    'AttentionMapLoss',
    'CWDLoss',
    'DistillLoss',
    'FGDLoss',
    'HeadTargets',
    'HolisticLoss',
    'IntRALoss',
    'LDImitationLoss',
    'LDLoss',
    'PairWiseLoss',
    'PixelWiseLoss',
    'attention_map_loss',
    'cwd_loss',
    'fgd_loss',
    'intra_loss',
    'ld_loss',
    'pair_wise_loss',
    'pixel_wise_loss',
]
