"""What each loss looks at."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import matplotlib

from kd_dense.mm.pictures import methods
from kd_dense.mm.pictures.canvas import STYLE
from kd_dense.mm.pictures.general import ANY, Known, LossPictures
from kd_dense.mm.pictures.methods.rois import on_rois
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['draw_term', 'pictures_of']

# A loss that derives from one of these has its pictures.
PICTURES: dict[type, Known] = {
    loss: pictures
    for _, path, folder in walk_packages(methods.__path__, f'{methods.__name__}.')
    if not folder
    for loss, pictures in import_module(path).PICTURES.items()
}


def pictures_of(compared: Compared) -> LossPictures:
    """The pictures of the loss of a term; of one that is not known here, those of any loss."""
    kinds = type(compared.losses[0]).__mro__
    known = next((PICTURES[kind] for kind in kinds if kind in PICTURES), ANY)
    if compared.rois is not None:
        return on_rois(known)
    return known(compared) if callable(known) else known


@matplotlib.rc_context(STYLE)
def draw_term(view: View, compared: Compared) -> Any:
    """Draw what the loss of a term looks at, in teacher and student.

    A loss that is not known here gets the mean activation of both, and their difference.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    return pictures_of(compared).draw(view, compared)
