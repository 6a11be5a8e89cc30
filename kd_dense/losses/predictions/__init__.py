"""What dense heads predict: classes and boxes, of the same priors in both models."""

from kd_dense.losses.predictions.adl import ADLLoss, adl_loss
from kd_dense.losses.predictions.bckd import BCKDLoss, bckd_loss
from kd_dense.losses.predictions.boxes import HeadBoxes
from kd_dense.losses.predictions.crosskd import CrossKDLoss, crosskd_loss
from kd_dense.losses.predictions.pgd import (
    PGDBoxLoss,
    PGDClassLoss,
    pgd_box_loss,
    pgd_class_loss,
)

__all__ = [
    'ADLLoss',
    'BCKDLoss',
    'CrossKDLoss',
    'HeadBoxes',
    'PGDBoxLoss',
    'PGDClassLoss',
    'adl_loss',
    'bckd_loss',
    'crosskd_loss',
    'pgd_box_loss',
    'pgd_class_loss',
]
