import pytest
import torch

from kd_dense.losses import CWDLoss, PixelWiseLoss
from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.terms import draw_term
from tests.mm.pictures.looking import drawn, see_loss, segmentation, texts


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='PixelWiseLoss', divergence='kl', temperature=2.0, weight=3.0),
        dict(type='PixelWiseLoss', divergence='kl', published_batch=None),
        dict(type='PairWiseLoss', scale=0.3),
    ],
    ids=str,
)
def test_positions_of_variants_add_up_to_the_loss(loss):
    one = see_loss(loss)
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


@pytest.mark.parametrize('loss', [PixelWiseLoss(), CWDLoss(norm='spatial')], ids=str)
@pytest.mark.parametrize(
    ('classes', 'channels', 'names'),
    [
        (('wall', 'door'), None, ['wall', 'door']),
        (('door',), ('door',), ['not door', 'door']),
        ((), None, ['0', '1']),
    ],
)
def test_one_channel_of_logits_stands_for_two_classes(loss, classes, channels, names):
    torch.manual_seed(0)
    s, t = torch.randn(2, 1, 1, 8, 16)
    value = float(loss(s, t))
    one = Compared('decode_head.conv_seg', [loss], [s], [t], {}, value, channels)
    [shares] = differences(one).maps
    assert (shares > 0).all()
    if isinstance(loss, CWDLoss):
        assert float(shares.sum()) == pytest.approx(value, rel=1e-4)
    figure = draw_term(segmentation()._replace(classes=classes), one)
    [bars] = [axis for axis in figure.axes if 'at the marked place' in axis.get_title()]
    assert [tick.get_text() for tick in bars.get_xticklabels()] == names
    assert 'Which classes does each position get?' in texts(figure)
    drawn(figure)
