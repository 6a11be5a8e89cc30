"""Review: the student's maps behind their fusions, beside the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_dense.losses import FitNetsLoss, ReviewKDLoss
from kd_dense.losses.features.review import GRIDS, reviewed
from kd_dense.mm.pictures.general import Known, LossPictures
from kd_dense.mm.pictures.methods.features.mimic import draw_mimic, mimic_shares
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES']


def _behind_fusions(compared: Compared) -> Compared:
    """What is compared, as FitNets would find it."""
    loss = compared.loss(0)
    with torch.no_grad():
        student = reviewed(compared.student, list(loss.fusions))
    return compared._replace(student=student, losses=[FitNetsLoss(loss.weight, pooled=GRIDS)])


def _draw(view: View, compared: Compared) -> object:
    return draw_mimic(view, _behind_fusions(compared))


def _shares(compared: Compared) -> list[Tensor]:
    return mimic_shares(_behind_fusions(compared))


PICTURES: dict[type, Known] = {
    ReviewKDLoss: LossPictures(_draw, _shares, 'the loss, without its coarse grids')
}
