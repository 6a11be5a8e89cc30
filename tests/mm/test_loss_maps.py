"""What each position adds to a loss: together, the loss."""

import pytest
import torch

from kd_dense.losses import DistillLoss
from kd_dense.mm.loss_maps import differences
from kd_dense.mm.observe import class_names, compare, load, look
from kd_dense.registry import MODELS
from tests.mm import methods, toy

TERMS = {method: [*terms] for method, terms in (methods.SEGMENTERS | methods.DETECTORS).items()}
# The values of these are made of more than what the map shows, or of something else.
PARTS = {
    ('fgd', 'fgd'): ('foreground', 'background'),
    ('skd', 'pixel'): None,
    ('skd', 'holistic'): None,
}


def compared(model, scenes, index=1):
    data = load(scenes, index)
    view = look(model, data, class_names(scenes))
    return view, *compare(model, data, view)


def found(method):
    model = toy.build(methods.distilled(method)).eval()
    return compared(model, methods.scenes(method))[1]


@pytest.mark.parametrize('method', methods.METHODS)
def test_positions_add_up_to_the_loss(method):
    for name, one in found(method).items():
        shown = differences(one)
        assert [tuple(m.shape) for m in shown.maps] == [
            tuple(m.shape[2:]) for m in one.student[: len(shown.maps)]
        ]
        assert all((m >= 0).all() for m in shown.maps if m.dtype == torch.float64)
        parts = PARTS.get((method, name), ())
        if parts is None:
            continue
        value = one.value
        if parts:
            levels = zip(one.student, one.teacher, strict=True)
            losses = [one.loss(i)(s, t, **one.needs) for i, (s, t) in enumerate(levels)]
            value = float(sum(loss[part] for loss in losses for part in parts))
        assert value > 0
        total = sum(float(m.sum()) for m in shown.maps)
        assert total == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='PixelWiseLoss', divergence='kl', temperature=2.0, weight=3.0),
        dict(type='PixelWiseLoss', divergence='kl', published_batch=None),
        dict(type='CWDLoss', norm='spatial', temperature=2.0),
        dict(type='CWDLoss', norm='spatial', divergence='mse'),
        dict(type='CWDLoss', divergence='mse'),
        dict(type='PairWiseLoss', scale=0.3),
        dict(type='IntRALoss', kernel=3, normaliser='all', regions='smooth'),
        dict(type='AttentionMapLoss', norm='softmax', weight=2.0),
    ],
    ids=str,
)
def test_variants_add_up_too(loss):
    terms = dict(one=dict(tap='decode_head.conv_seg', loss=loss))
    model = toy.build(toy.distilled(terms=terms)).eval()
    one = compared(model, toy.SegScenes(augment=False))[1]['one']
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


@pytest.mark.parametrize(
    'settings', [dict(region='vlr'), dict(region='inside'), dict(vlr_on_positives=False)], ids=str
)
def test_regions_of_ld_add_up(settings):
    config = methods.distilled('ld')
    config.terms = dict(ld=dict(tap='bbox_head', loss=dict(type='LDLoss', **settings)))
    model = toy.build(config).eval()
    one = compared(model, methods.scenes('ld'))[1]['ld']
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(one.value, rel=1e-4)


@pytest.mark.parametrize('scale', ['batch', 'image'])
def test_boxes_of_fgd_lie_where_the_loss_has_them(scale):
    """In a picture that is padded."""
    config = methods.distilled('fgd')
    config.terms.fgd.loss.box_scale = scale
    one = compared(toy.build(config).eval(), toy.DetScenes())[1]['fgd']
    levels = zip(one.student, one.teacher, strict=True)
    losses = [one.loss(i)(s, t, **one.needs) for i, (s, t) in enumerate(levels)]
    value = float(sum(loss[part] for loss in losses for part in ('foreground', 'background')))
    total = sum(float(m.sum()) for m in differences(one).maps)
    assert total == pytest.approx(value, rel=1e-4)


def test_a_variant_without_distributions_is_shown_as_any_loss():
    loss = dict(type='CWDLoss', norm='none', divergence='mse')
    terms = dict(one=dict(tap='decode_head.conv_seg', loss=loss))
    model = toy.build(toy.distilled(terms=terms)).eval()
    one = compared(model, toy.SegScenes(augment=False))[1]['one']
    assert differences(one).what == 'difference of mean activation'


def test_equal_models_differ_nowhere():
    student = toy.segmenter(dropout=0.0)
    model = toy.build(toy.distilled(student, dict(config=student, checkpoint=None))).eval()
    model.load_state_dict(
        {**model.state_dict(), **model.kd_plan.teacher.model.state_dict()}, strict=True
    )
    [one] = compared(model, toy.SegScenes(augment=False))[1].values()
    assert one.value == pytest.approx(0, abs=1e-6)
    assert max(float(m.max()) for m in differences(one).maps) < 1e-6


@MODELS.register_module()
class UsersLoss(DistillLoss):
    any_channels = True

    def forward(self, student, teacher):
        return self.weight * (student.mean() - teacher.mean()).square()


def test_an_unknown_loss_shows_mean_activations():
    terms = dict(own=dict(tap='backbone.layer4', loss=dict(type='UsersLoss')))
    model = toy.build(toy.distilled(terms=terms)).eval()
    one = compared(model, toy.SegScenes(augment=False))[1]['own']
    shown = differences(one)
    expected = (one.student[0].mean(1) - one.teacher[0].mean(1)).abs()[0]
    assert torch.equal(shown.maps[0], expected)
    assert shown.what == 'difference of mean activation'
    apart = one._replace(student=[one.student[0][..., :2, :2]])  # which has no difference
    assert differences(apart).maps == []
