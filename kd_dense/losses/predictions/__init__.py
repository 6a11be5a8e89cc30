"""What dense heads predict: classes and boxes, of the same priors in both models."""

from kd_dense.losses.predictions.adl import ADLLoss, adl_loss
from kd_dense.losses.predictions.bckd import BCKDLoss, bckd_loss
from kd_dense.losses.predictions.boxes import HeadBoxes

__all__ = ['ADLLoss', 'BCKDLoss', 'HeadBoxes', 'adl_loss', 'bckd_loss']
