"""Distillation losses, one file per method. They need torch and nothing else."""

from kd_dense.losses.base import DistillLoss
from kd_dense.losses.cwd import CWDLoss, cwd_loss

__all__ = ['CWDLoss', 'DistillLoss', 'cwd_loss']
