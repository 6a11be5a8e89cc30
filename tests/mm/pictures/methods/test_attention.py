import pytest

from kd_dense.mm.pictures.differences import differences
from tests.mm.pictures.looking import see_loss


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='ATLoss', weight=3.0),
        dict(type='AttentionMapLoss', norm='softmax', reduction='position'),
        dict(type='SADLoss', weight=3.0),
    ],
    ids=str,
)
def test_positions_of_variants_add_up_to_the_loss(loss):
    one = see_loss(loss)
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


def test_a_later_stage_of_another_size_is_enlarged():
    tap = dict(student='backbone.layer1', teacher='backbone.layer4')
    one = see_loss(dict(type='SADLoss'), tap)
    assert one.student[0].shape[2:] != one.teacher[0].shape[2:]
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)
