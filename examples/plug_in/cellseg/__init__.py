"""A small package on mmengine, as others have one: it knows nothing of kd_dense."""

from cellseg.data import Cells
from cellseg.metric import CellIoU
from cellseg.model import CellNet

__all__ = ['CellIoU', 'CellNet', 'Cells']
