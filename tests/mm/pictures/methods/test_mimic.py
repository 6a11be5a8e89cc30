import pytest

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import methods
from tests.mm.pictures.looking import see_loss, see_method, texts

FEATURES = methods.FEATURES


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='FitNetsLoss', reduction='image'),
        dict(type='VkDLoss', weight=2.0),
        dict(type='NFDLoss'),
        dict(type='FTLoss'),
        dict(type='MimicLoss', norm='batch', distance='l1', eps=0.5, unbiased=False),
    ],
    ids=lambda loss: loss['type'],
)
def test_positions_of_the_members_add_up_to_the_loss(loss):
    one = see_loss(loss, FEATURES)
    shown = differences(one)
    assert shown.what == 'the loss'
    assert sum(float(m.sum()) for m in shown.maps) == pytest.approx(one.value, rel=1e-4)


def test_what_is_left_out_is_said():
    plain, pooled, root = (
        differences(see_loss(dict(type='MimicLoss', **options), FEATURES))
        for options in ({}, dict(pooled=(2, 1)), dict(reduction='root'))
    )
    assert pooled.what == 'the loss, without its coarse grids'
    assert float(pooled.maps[0].sum()) == pytest.approx(plain.value / 1.75, rel=1e-4)
    assert root.what == 'what the loss is the root of'
    assert float(root.maps[0].sum()) == pytest.approx(root.value**2, rel=1e-4)


def test_of_fbkd_the_masked_part_is_shown():
    _, compared = see_method('mimic')
    shown = differences(compared['focus'])
    loss = compared['focus'].loss(0)
    parts = loss(compared['focus'].student, compared['focus'].teacher)
    total = sum((2 * m.sum()) ** 0.5 for m in shown.maps)  # of two pictures, as published
    assert loss.weights['masked'] * float(total) == pytest.approx(float(parts['masked']), rel=1e-4)


def test_maps_that_are_compared_as_they_are_are_drawn_once():
    view, compared = see_method('mimic')
    assert 'as compared' in texts(draw_term(view, compared['channels']))
    one = compared['channels']._replace(losses=see_loss(dict(type='FitNetsLoss'), FEATURES).losses)
    written = texts(draw_term(view, one))
    assert 'as compared' not in written
    assert 'Compared: the features as they are' in written
