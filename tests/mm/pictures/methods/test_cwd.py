import pytest

from kd_dense.mm.pictures.differences import differences
from tests.mm.pictures.looking import see_loss


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='CWDLoss', norm='spatial', temperature=2.0),
        dict(type='CWDLoss', norm='spatial', divergence='mse'),
        dict(type='CWDLoss', divergence='mse'),
    ],
    ids=str,
)
def test_positions_of_variants_add_up_to_the_loss(loss):
    one = see_loss(loss)
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


def test_a_variant_without_distributions_is_shown_as_any_loss():
    one = see_loss(dict(type='CWDLoss', norm='none', divergence='mse'))
    assert differences(one).what == 'difference of mean activation'
