"""Inter-region affinity distillation: the statistics of the regions of a label map, compared."""

from kd_dense.losses.intrakd.intrakd import IntRALoss, intra_loss

__all__ = ['IntRALoss', 'intra_loss']
