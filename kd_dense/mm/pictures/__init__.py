"""Draw what models find in a picture, what each loss looks at, and where they still differ.

All functions that draw return matplotlib figures that belong to no window. Import this package
only where something is drawn: it imports matplotlib.

Each method has a file, and ``terms.py`` says which loss is drawn by what.
"""

from kd_dense.mm.pictures.canvas import pixels_of, save
from kd_dense.mm.pictures.differences import draw_differences
from kd_dense.mm.pictures.predictions import draw_predictions
from kd_dense.mm.pictures.terms import draw_term

__all__ = ['draw_differences', 'draw_predictions', 'draw_term', 'pixels_of', 'save']
