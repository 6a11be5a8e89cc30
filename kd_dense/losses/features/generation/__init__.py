"""Generation: the student's features, partly masked, have to yield all of the teacher's."""

from kd_dense.losses.features.generation.af_dcd import AfDCDLoss, af_dcd_loss
from kd_dense.losses.features.generation.mgd import MGDLoss, mgd_loss

__all__ = ['AfDCDLoss', 'MGDLoss', 'af_dcd_loss', 'mgd_loss']
