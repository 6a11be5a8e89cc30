import pytest
import torch

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import toy, toy_rois
from tests.mm.pictures.looking import drawn, see, texts
from tests.mm.toy_rois import term


def seen(terms, index=3, **others):
    model = toy.build(toy_rois.distilled(terms=terms, **others)).eval()
    return see(model, toy.DetScenes(), index)


@pytest.mark.parametrize(
    'loss', [dict(type='DKDLoss', weight=3.0), dict(type='KDLoss', temperature=2.0)], ids=str
)
def test_regions_add_up_to_the_loss(loss):
    one = seen(dict(one=term(loss=loss)))[1]['one']
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


def test_what_the_models_say_of_the_worst_regions_is_shown():
    view, found = seen(toy_rois.terms())
    one = found['dkd']
    assert one.rois.boxes.shape == (len(one.rois.labels), 4)
    assert 0 <= one.rois.boxes.min() <= one.rois.boxes.max() <= 1
    said = texts(draw_term(view, one))
    assert 'probability, %' in said
    assert 'region of: ' in said
    assert 'background' in said
    assert 'offset' in texts(draw_term(view, found['boxes']))
    others = dict(
        pooled=term('roi_head.bbox_roi_extractor', dict(type='FitNetsLoss')),
        hidden=term('roi_head.bbox_head.relu', dict(type='DISTLoss', sigmoid=True)),
    )
    view, found = seen(others)
    for one in found.values():
        figure = draw_term(view, one)
        assert 'Shared RoIs' in texts(figure)
        drawn(figure)


def test_a_picture_without_an_object_has_no_offsets():
    view, found = seen(dict(boxes=toy_rois.terms()['boxes']), 0)
    figure = draw_term(view, found['boxes'])
    assert 'no region in which something differs' in texts(figure)
    drawn(figure)


def test_a_picture_without_labels_is_left_out():
    from kd_dense.mm.pictures.observe import compare

    model = toy.build(toy_rois.distilled()).eval()
    view, _ = see(model, toy.DetScenes(), 3)
    data = dict(inputs=[torch.zeros(3, 64, 64)], data_samples=None)
    found, left_out = compare(model, data, view._replace(labels=None, boxes=None))
    assert found == {}
    assert set(left_out) == {'dkd', 'dist', 'boxes'}
