import pytest

from kd_dense.mm.pictures.differences import differences
from tests.mm import methods, toy
from tests.mm.pictures.looking import see


@pytest.mark.parametrize('scale', ['batch', 'image'])
def test_boxes_of_fgd_lie_where_the_loss_has_them(scale):
    """In a picture that is padded."""
    config = methods.distilled('fgd')
    config.terms.fgd.loss.box_scale = scale
    one = see(toy.build(config).eval(), toy.DetScenes())[1]['fgd']
    levels = zip(one.student, one.teacher, strict=True)
    losses = [one.loss(i)(s, t, **one.needs) for i, (s, t) in enumerate(levels)]
    value = float(sum(loss[part] for loss in losses for part in ('foreground', 'background')))
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(value, rel=1e-4)
