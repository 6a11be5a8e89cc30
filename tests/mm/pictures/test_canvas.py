import matplotlib

from kd_dense.mm.pictures.observe import Prediction
from kd_dense.mm.pictures.predictions import draw_predictions
from tests.mm.pictures.looking import detection, drawn


def test_names_do_not_cover_each_other():
    boxes = [[10 + i, 10, 70, 60 + i] for i in range(10)]
    figure = draw_predictions(detection(boxes, [*range(10)]), {'teacher': Prediction()})
    drawn(figure)
    renderer = figure.canvas.get_renderer()
    tags = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().startswith('name')]
    extents = [t.get_bbox_patch().get_window_extent(renderer) for t in tags]
    assert 1 <= len(tags) < 10
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])
