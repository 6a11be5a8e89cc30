"""What each position adds to a loss: together, the loss; and where the worst places are."""

import matplotlib
import pytest
import torch

from kd_dense.mm.pictures.differences import Differences, differences, draw_differences
from tests.mm import methods, toy
from tests.mm.pictures.looking import detection, drawn, see, see_method, texts

# The values of these are made of more than what the map shows, or of something else.
PARTS = {
    ('fgd', 'fgd'): ('foreground', 'background'),
    ('generation', 'contrast'): ('features',),
    ('query-masks', 'masks'): ('mask',),
    ('masked', 'frs'): ('features',),
    ('logits', 'dist'): None,
    ('rois', 'dist'): None,
    ('mimic', 'focus'): None,
    ('memory', 'memory'): ('regions',),
    ('review', 'review'): None,
    ('predictions', 'class_tower'): None,
    ('relations', 'class_relations'): None,
    ('relations', 'images'): None,
    ('relations', 'angles'): None,
    ('relations', 'set'): None,
    ('attention', 'moves'): None,
    ('prototypes', 'perspectives'): ('perspective',),
    ('predictions', 'box_tower'): None,
    ('skd', 'pixel'): None,
    ('skd', 'holistic'): None,
}


@pytest.mark.parametrize('method', methods.METHODS)
def test_positions_add_up_to_the_loss(method):
    for name, one in see_method(method)[1].items():
        shown = differences(one)
        if not one.loss(0).of_queries:
            assert [tuple(m.shape) for m in shown.maps] == [
                tuple(m.shape[2:]) if one.rois is None else (64, 64)
                for m in one.student[: len(shown.maps)]
            ]
        assert all((m >= 0).all() for m in shown.maps if m.dtype == torch.float64)
        parts = PARTS.get((method, name), ())
        if parts is None:
            continue
        value = one.value
        if parts:
            levels = zip(one.student, one.teacher, strict=True)
            if one.loss(0).all_maps:
                levels = [(one.student, one.teacher)]
            losses = [one.loss(i)(s, t, **one.needs) for i, (s, t) in enumerate(levels)]
            value = float(sum(loss[part] for loss in losses for part in parts))
        assert value > 0
        total = sum(float(m.sum()) for m in shown.maps)
        assert total == pytest.approx(value, rel=1e-4), name


def test_equal_models_differ_nowhere():
    student = toy.segmenter(dropout=0.0)
    model = toy.build(toy.distilled(student, dict(config=student, checkpoint=None))).eval()
    model.load_state_dict(
        {**model.state_dict(), **model.kd_plan.teacher.model.state_dict()}, strict=True
    )
    [one] = see(model, toy.SegScenes(augment=False))[1].values()
    assert one.value == pytest.approx(0, abs=1e-6)
    assert max(float(m.max()) for m in differences(one).maps) < 1e-6


def test_worst_places_are_apart_and_marked():
    maps = torch.zeros(20, 20)
    maps[3, 4], maps[3, 5], maps[15, 15], maps[10, 2] = 5.0, 4.0, 3.0, 0.5
    shown = Differences(1.0, [maps], 'the loss')
    figure = draw_differences(detection([], []), {'student': shown})
    marks = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text() in '123']
    at = {(t.get_text(), *t.get_position()) for t in marks if t.get_text()}
    # a position is 4 pixels wide and 6 high; the one beside the worst, and a small one, are not
    assert at == {('1', 18.0, 21.0), ('2', 62.0, 93.0)}
    drawn(figure)


def test_a_map_without_any_difference():
    shown = Differences(0.0, [torch.zeros(4, 4)] * 5, 'the loss')
    figure = draw_differences(detection([], []), {'student': shown})
    assert texts(figure).count('none') == 5
    drawn(figure)
