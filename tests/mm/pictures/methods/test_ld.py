import pytest

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import methods, toy
from tests.mm.pictures.looking import drawn, see, see_method, texts


@pytest.mark.parametrize(
    'settings', [dict(region='vlr'), dict(region='inside'), dict(vlr_on_positives=False)], ids=str
)
def test_positions_of_regions_add_up_to_the_loss(settings):
    config = methods.distilled('ld')
    config.terms = dict(ld=dict(tap='bbox_head', loss=dict(type='LDLoss', **settings)))
    model = toy.build(config).eval()
    one = see(model, methods.scenes('ld'))[1]['ld']
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


def test_an_object_free_picture_has_nothing_to_localise():
    view, compared = see_method('ld', 0)
    figure = draw_term(view, compared['ld'])
    assert 'no object in this picture: no box is compared' in texts(figure)
    drawn(figure)
    drawn(draw_term(view, compared['imitation']))


@pytest.mark.parametrize(
    'settings',
    [
        dict(region='all'),
        dict(region='decoupled'),
        dict(region='decoupled', background_weight=0.0),
        dict(region='inside', positive_levels_only=True),
    ],
    ids=str,
)
def test_positions_that_are_imitated_add_up_to_the_loss(settings):
    config = methods.distilled('ld')
    loss = dict(type='LDImitationLoss', **settings)
    config.terms = dict(imitation=dict(tap='neck', loss=loss))
    view, found = see(toy.build(config).eval(), methods.scenes('ld'))
    one = found['imitation']
    maps = differences(one).maps
    assert sum(float(m.sum()) for m in maps) == pytest.approx(one.value, rel=1e-4)
    figure = draw_term(view, one)
    outside = one.loss(0).background_weight > 0
    assert ('outside by a mean of their own' in texts(figure)) == outside
    assert all((m > 0).any() for m in maps) == (outside or settings['region'] == 'all')
    drawn(figure)
