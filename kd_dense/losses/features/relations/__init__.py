"""Relations: how channels, positions or images of one model relate to each other."""

from kd_dense.losses.features.relations.gram import ICKDLoss, RelationLoss, SPLoss, relation_loss
from kd_dense.losses.features.relations.images import (
    CCKDLoss,
    PKTLoss,
    RKDLoss,
    cckd_loss,
    pkt_loss,
    rkd_loss,
)
from kd_dense.losses.features.relations.nst import NSTLoss, nst_loss
from kd_dense.losses.features.relations.pairs import CrossImageLoss, cross_image_loss

__all__ = [
    'CCKDLoss',
    'CrossImageLoss',
    'ICKDLoss',
    'NSTLoss',
    'PKTLoss',
    'RKDLoss',
    'RelationLoss',
    'SPLoss',
    'cckd_loss',
    'cross_image_loss',
    'nst_loss',
    'pkt_loss',
    'relation_loss',
    'rkd_loss',
]
