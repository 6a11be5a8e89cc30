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
