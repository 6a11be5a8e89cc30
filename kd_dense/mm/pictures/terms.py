"""What each loss looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib

from kd_dense.losses import (
    AttentionMapLoss,
    CWDLoss,
    FGDLoss,
    IntRALoss,
    LDImitationLoss,
    LDLoss,
    PairWiseLoss,
    PixelWiseLoss,
)
from kd_dense.mm.loss_maps import of_loss
from kd_dense.mm.observe import Compared, View
from kd_dense.mm.pictures.canvas import STYLE
from kd_dense.mm.pictures.cwd import draw_cwd
from kd_dense.mm.pictures.fgd import draw_fgd
from kd_dense.mm.pictures.general import draw_activations
from kd_dense.mm.pictures.intrakd import draw_affinity, draw_attention
from kd_dense.mm.pictures.ld import draw_imitation, draw_ld
from kd_dense.mm.pictures.skd import draw_pair_wise, draw_pixel_wise

__all__ = ['draw_term']

# A loss that derives from one of these is drawn as that one.
DRAWINGS: dict[type, Callable[[View, Compared], Any]] = {
    CWDLoss: draw_cwd,
    PixelWiseLoss: draw_pixel_wise,
    PairWiseLoss: draw_pair_wise,
    FGDLoss: draw_fgd,
    LDLoss: draw_ld,
    LDImitationLoss: draw_imitation,
    IntRALoss: draw_affinity,
    AttentionMapLoss: draw_attention,
}


@matplotlib.rc_context(STYLE)
def draw_term(view: View, compared: Compared) -> Any:
    """Draw what the loss of a term looks at, in teacher and student.

    A loss that is not known here gets the mean activation of both, and their difference.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    return of_loss(DRAWINGS, compared, draw_activations)(view, compared)
