import pytest

from kd_dense.mm.pictures.differences import differences
from tests.mm.pictures.looking import see_loss


def test_positions_of_ifvd_add_up_to_the_loss():
    one = see_loss(dict(type='IFVDLoss', weight=3.0), 'backbone.layer4')
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


def test_positions_of_apd_add_up_to_the_part_of_the_perspectives():
    loss = dict(type='APDLoss', weight=3.0, centres=0.0, teacher=0.0)
    one = see_loss(loss, 'backbone.layer4')
    assert one.value > 0
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)
