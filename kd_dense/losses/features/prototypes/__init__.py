"""Prototypes: features compared by way of the centre of their class."""

from kd_dense.losses.features.prototypes.apd import APDLoss, apd_loss
from kd_dense.losses.features.prototypes.ifvd import IFVDLoss, ifvd_loss

__all__ = ['APDLoss', 'IFVDLoss', 'apd_loss', 'ifvd_loss']
