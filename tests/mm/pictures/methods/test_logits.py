import pytest

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import toy
from tests.mm.pictures.looking import drawn, see, see_loss, texts


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='KDLoss', temperature=2.0, temperature_squared=False, per='entry'),
        dict(type='KDLoss', per='map', valid_only=False, standardise=True),
        dict(type='KDLoss', per='image', sigmoid=True),
        dict(type='DISTLoss', intra=0.0, temperature=2.0, weight=3.0),
        dict(type='DKDLoss', reduction='sum'),
        dict(type='GDKDLoss', k=1),
        dict(type='LwFLoss', alpha=2.0),
    ],
    ids=str,
)
def test_positions_of_variants_add_up_to_the_loss(loss):
    one = see_loss(loss)
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


@pytest.mark.parametrize('loss', ['UnbiasedKDLoss', 'LwFLoss'])
def test_the_classes_of_the_teacher_are_shown(loss):
    terms = dict(one=dict(tap='decode_head.conv_seg', loss=dict(type=loss, standardise=True)))
    model = toy.build(toy.distilled(toy.segmenter(classes=7), terms=terms)).eval()
    view, compared = see(model, toy.SegScenes(augment=False))
    one = compared['one']
    assert [x.shape[1] for x in (one.student[0], one.teacher[0])] == [7, 5]
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)
    figure = draw_term(view, one)
    assert 'Which classes does each position get?' in texts(figure)
    drawn(figure)


@pytest.mark.parametrize('confidence', ['position', 'image'])
def test_of_several_teachers_their_weights_are_shown(confidence):
    teachers = {name: dict(config=toy.segmenter(width), checkpoint=None)
                for name, width in (('a', 16), ('b', 24))}  # fmt: skip
    loss = dict(type='CAMKDLoss', confidence=confidence, weight=2.0)
    term = dict(tap='decode_head.conv_seg', teacher=['a', 'b'], loss=loss)
    model = toy.build(toy.distilled(teacher=teachers, terms=dict(one=term))).eval()
    view, compared = see(model, toy.SegScenes(augment=False))
    one = compared['one']
    assert differences(one).maps[0].sum() == pytest.approx(one.value, rel=1e-4)
    figure = draw_term(view, one)
    assert 'CA-MKD: which teacher knows the label?' in texts(figure)
    assert 'weight of teacher 2' in texts(figure)
    drawn(figure)


def test_sigmoids_of_a_detector_are_drawn_level_by_level():
    tap = 'bbox_head.retina_cls'
    terms = {
        'dist': dict(tap=tap, loss=dict(type='DISTLoss')),
        'kd': dict(tap=tap, loss=dict(type='KDLoss', valid_only=False)),
    }
    model = toy.build(toy.distilled_detector(terms=terms)).eval()
    view, compared = see(model, toy.DetScenes())
    assert len(compared['dist'].student) == 5
    for name, title in (('dist', 'rise and fall alike'), ('kd', 'KDLoss compares these maps')):
        figure = draw_term(view, compared[name])
        assert title in texts(figure)
        drawn(figure)
