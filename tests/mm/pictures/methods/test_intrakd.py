import pytest

from kd_dense.mm.pictures.differences import differences
from tests.mm.pictures.looking import see_loss


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='IntRALoss', kernel=3, normaliser='all', regions='smooth'),
        dict(type='AttentionMapLoss', norm='softmax', weight=2.0),
    ],
    ids=str,
)
def test_positions_of_variants_add_up_to_the_loss(loss):
    one = see_loss(loss)
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)
