import pytest

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import toy
from tests.mm.pictures.looking import drawn, see, see_loss, texts

POSITIONS = dict(type='RelationLoss', over='positions', rows='none', values='unit', weight=3.0)


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='CrossImageLoss', temperature=0.02, pool=2, weight=3.0),
        {**POSITIONS, 'reduction': 'mean'},
        {**POSITIONS, 'pool': 2, 'rows': 'l2'},
    ],
    ids=str,
)
def test_positions_of_variants_add_up_to_the_loss(loss):
    one = see_loss(loss, 'backbone.layer4')
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


@pytest.mark.parametrize('tap', ['decode_head.conv_seg', 'backbone.layer4'])
def test_relations_of_channels_are_named_where_these_are_classes(tap):
    terms = dict(one=dict(tap=tap, loss=dict(type='ICKDLoss', windows=(2, 2))))
    model = toy.build(toy.distilled(terms=terms)).eval()
    view, compared = see(model, toy.SegScenes(augment=False))
    figure = draw_term(view, compared['one'])
    what = 'classes' if tap.startswith('decode') else 'channels'
    assert f'Which {what} are active together?' in texts(figure)
    drawn(figure)
