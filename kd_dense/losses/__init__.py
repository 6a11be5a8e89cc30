"""Distillation losses, a file for each method or family. They need torch and nothing else."""

from kd_dense.losses.attention import AttentionMapLoss, attention_map_loss
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.cwd import CWDLoss, cwd_loss
from kd_dense.losses.fgd import FGDLoss, fgd_loss
from kd_dense.losses.generation import AfDCDLoss, MGDLoss, af_dcd_loss, mgd_loss
from kd_dense.losses.intrakd import IntRALoss, intra_loss
from kd_dense.losses.ld import HeadTargets, LDLoss, ld_loss
from kd_dense.losses.ld_imitation import LDImitationLoss
from kd_dense.losses.ld_rotated import RotatedLDLoss, rotated_ld_loss
from kd_dense.losses.logits import (
    DISTLoss,
    DKDLoss,
    GDKDLoss,
    KDLoss,
    LwFLoss,
    NKDLoss,
    UnbiasedKDLoss,
    WSLDLoss,
    dist_loss,
    dkd_loss,
    gdkd_loss,
    kd_loss,
    lwf_loss,
    nkd_loss,
    unbiased_cross_entropy,
    unbiased_kd_loss,
    wsld_loss,
)
from kd_dense.losses.mimic import (
    CosineLoss,
    FBKDLoss,
    FitNetsLoss,
    FTLoss,
    MimicLoss,
    NFDLoss,
    PKDLoss,
    VkDLoss,
    fbkd_loss,
    mimic_loss,
)
from kd_dense.losses.predictions import ADLLoss, BCKDLoss, HeadBoxes, adl_loss, bckd_loss
from kd_dense.losses.queries import (
    QueryBoxLoss,
    QueryFeatureLoss,
    TaughtQueries,
    query_box_loss,
    query_feature_loss,
)
from kd_dense.losses.rois import RoIBoxLoss, roi_box_loss
from kd_dense.losses.skd import (
    HolisticLoss,
    PairWiseLoss,
    PixelWiseLoss,
    pair_wise_loss,
    pixel_wise_loss,
)

__all__ = [
    'ADLLoss',
    'AfDCDLoss',
    'AttentionMapLoss',
    'BCKDLoss',
    'CWDLoss',
    'CosineLoss',
    'DISTLoss',
    'DKDLoss',
    'DistillLoss',
    'FBKDLoss',
    'FGDLoss',
    'FTLoss',
    'FitNetsLoss',
    'GDKDLoss',
    'HeadBoxes',
    'HeadTargets',
    'HolisticLoss',
    'IntRALoss',
    'KDLoss',
    'LDImitationLoss',
    'LDLoss',
    'LwFLoss',
    'MGDLoss',
    'MimicLoss',
    'NFDLoss',
    'NKDLoss',
    'PKDLoss',
    'PairWiseLoss',
    'PixelWiseLoss',
    'QueryBoxLoss',
    'QueryFeatureLoss',
    'RoIBoxLoss',
    'RotatedLDLoss',
    'TaughtQueries',
    'UnbiasedKDLoss',
    'VkDLoss',
    'WSLDLoss',
    'adl_loss',
    'af_dcd_loss',
    'attention_map_loss',
    'bckd_loss',
    'cwd_loss',
    'dist_loss',
    'dkd_loss',
    'fbkd_loss',
    'fgd_loss',
    'gdkd_loss',
    'intra_loss',
    'kd_loss',
    'ld_loss',
    'lwf_loss',
    'mgd_loss',
    'mimic_loss',
    'nkd_loss',
    'pair_wise_loss',
    'pixel_wise_loss',
    'query_box_loss',
    'query_feature_loss',
    'roi_box_loss',
    'rotated_ld_loss',
    'unbiased_cross_entropy',
    'unbiased_kd_loss',
    'wsld_loss',
]
