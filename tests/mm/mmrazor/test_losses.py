"""What a loss of mmrazor becomes, against a plain formula of mmrazor's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_dense.adapters import Adapter
from kd_dense.mm.mmrazor.connectors import adapter, settings
from kd_dense.mm.mmrazor.losses import LOSSES, REASONS, Given
from kd_dense.mm.mmrazor.note import CannotError
from kd_dense.registry import MODELS

SHAPE = (3, 5, 4, 6)
BN = dict(type='BN', affine=False, track_running_stats=False)


def conv(inner=5, outer=5, **others):
    return dict(type='ConvModuleConnector', in_channel=inner, out_channel=outer, **others)


def plain_cwd(s, t, tau=1.0):
    log_p, log_q = (F.log_softmax(x.flatten(2) / tau, dim=2) for x in (t, s))
    return tau**2 * (log_p.exp() * (log_p - log_q)).sum() / (s.shape[0] * s.shape[1])


def plain_kl(s, t, tau=1.0, reduction='batchmean'):
    target = F.softmax(t / tau, dim=1)
    value = F.kl_div(F.log_softmax(s / tau, dim=1), target, reduction=reduction)
    return (tau**2 * value).mean()  # as mmengine does with a loss that is a map


def plain_l2(s, t, normalize=True, mult=1.0, div_element=False, dist=False):
    if normalize:
        s, t = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) * mult for x in (s, t))
    total = ((s - t) ** 2).sum()
    return total.sqrt() if dist else total / (s.numel() if div_element else s.shape[0])


def plain_pkd(s, t):
    def normed(x):
        x = x.transpose(0, 1).flatten(1)
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    return F.mse_loss(normed(s), normed(t)) / 2


def plain_ft(s, t):
    return F.l1_loss(F.normalize(s.flatten(1)), F.normalize(t.flatten(1)))


def plain_at(s, t):
    return F.mse_loss(*(F.normalize(x.pow(2).mean(1).flatten(1)) for x in (s, t)))


def plain_distances(s, t, unit=True):
    found = []
    for x in (s, t):
        x = F.normalize(x.flatten(1)) if unit else x.flatten(1)
        apart = (x[:, None] - x).norm(dim=2)
        found.append(apart / apart[apart > 0].mean())
    return F.smooth_l1_loss(*found)


def plain_angles(s, t):
    found = []
    for x in (s, t):
        x = F.normalize(x.flatten(1))
        apart = F.normalize(x - x[:, None], dim=2)
        found.append(apart @ apart.mT)
    return F.smooth_l1_loss(*found)


def plain_rtmdet(s, t):
    return plain_cwd(*(F.batch_norm(x, None, None, training=True) for x in (s, t)))


NORMS = dict(student=conv(bias=False, norm_cfg=BN, act_cfg=None),
             teacher=dict(type='NormConnector', in_channels=5, norm_cfg=BN))  # fmt: skip
CASES = {
    'cwd': (dict(type='ChannelWiseDivergence', tau=4, loss_weight=3), {}, plain_cwd, dict(tau=4)),
    'cwd plain': (dict(type='ChannelWiseDivergence'), {}, plain_cwd, {}),
    'rtmdet': (dict(type='ChannelWiseDivergence'), NORMS, plain_rtmdet, {}),
    'kl': (dict(type='KLDivergence', tau=2), {}, plain_kl, dict(tau=2)),
    'kl mean': (
        dict(type='KLDivergence', reduction='mean', loss_weight=9),
        {},
        plain_kl,
        dict(reduction='mean'),
    ),
    'kl none': (dict(type='KLDivergence', reduction='none'), {}, plain_kl, dict(reduction='none')),
    'kl of a detector': (dict(type='KLDivergence'), dict(in_dense_head=True), plain_kl, {}),
    'l1': (dict(type='L1Loss', loss_weight=5), {}, F.l1_loss, {}),
    'l2': (dict(type='L2Loss', loss_weight=10), {}, plain_l2, {}),
    'l2 mult': (dict(type='L2Loss', mult=3.0), {}, plain_l2, dict(mult=3.0)),
    'l2 plain': (dict(type='L2Loss', normalize=False), {}, plain_l2, dict(normalize=False)),
    'l2 mean': (
        dict(type='L2Loss', normalize=False, div_element=True),
        {},
        plain_l2,
        dict(normalize=False, div_element=True),
    ),
    'l2 dist': (
        dict(type='L2Loss', dist=True, mult=2.0, loss_weight=0.5),
        dict(batch_size=SHAPE[0]),
        plain_l2,
        dict(dist=True, mult=2.0),
    ),
    'pkd': (dict(type='PKDLoss', loss_weight=6), {}, plain_pkd, {}),
    'ft': (dict(type='FTLoss', loss_weight=7), {}, plain_ft, {}),
    'at': (dict(type='ATLoss', loss_weight=7), {}, plain_at, {}),
    'rkd distances': (dict(type='DistanceWiseRKD', loss_weight=3), {}, plain_distances, {}),
    'rkd distances plain': (
        dict(type='DistanceWiseRKD', loss_weight=3, with_l2_norm=False),
        {},
        plain_distances,
        dict(unit=False),
    ),
    'rkd angles': (dict(type='AngleWiseRKD', loss_weight=3), {}, plain_angles, {}),
    'mgd alone': (
        dict(type='MGDLoss', alpha_mgd=1e-3),
        {},
        lambda s, t: 1e-3 * ((s - t) ** 2).sum() / len(s),
        {},
    ),
}


def maps():
    torch.manual_seed(0)
    return [torch.randn(SHAPE, dtype=torch.float64) * 3 for _ in range(2)]


def given(loss, **others):
    return Given(dict(loss), **others)


def built(term, **others):
    return MODELS.build(dict(term.loss, _scope_='kd_dense', **others)).double()


@pytest.mark.parametrize('name', CASES)
def test_the_loss_is_the_same(name):
    loss, others, plain, arguments = CASES[name]
    term = LOSSES[loss['type']].term(given(loss, **others))
    ours = built(term)(*maps())
    ours = sum(ours.values()) if isinstance(ours, dict) else ours
    theirs = loss.get('loss_weight', 1.0) * plain(*maps(), **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not term.changed


@pytest.mark.parametrize('ratio', [0.0, 1.0])
@pytest.mark.parametrize('over_channels', [False, True])
def test_mgd(ratio, over_channels):
    connector = dict(
        type='MGDConnector', student_channels=5, teacher_channels=5, lambda_mgd=ratio,
        mask_on_channel=over_channels,
    )  # fmt: skip
    term = LOSSES['MGDLoss'].term(given(dict(type='MGDLoss', alpha_mgd=2e-3), student=connector))
    assert term.adapter is True
    loss = built(term, channels=5)
    student, teacher = maps()
    convs = [m for m in loss.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 2
    made = convs[1](convs[0](student * (1 - ratio)).relu())
    expected = 2e-3 * ((made - teacher) ** 2).sum() / len(student)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-9, atol=0)


def test_mgd_masks_as_much():
    connector = dict(type='MGDConnector', student_channels=5, teacher_channels=5)
    term = LOSSES['MGDLoss'].term(given(dict(type='MGDLoss'), student=connector))
    assert term.loss == dict(type='MGDLoss', weight=2e-5, mask_ratio=0.65)


def mixed(relation, x, pools):
    """A non-local block with one max-pool behind the other, as mmrazor's connector has them."""
    phi, g = relation.phi(x), relation.g(x)
    for side in pools:
        phi, g = F.max_pool2d(phi, side), F.max_pool2d(g, side)
    pairs = relation.theta(x).flatten(2).mT @ phi.flatten(2) / phi.flatten(2).shape[2]
    y = relation.out((pairs @ g.flatten(2).mT).mT.unflatten(2, x.shape[2:]))
    return x + F.batch_norm(y, None, None, relation.scale, relation.shift, training=True)


def test_fbkd():
    arguments = dict(in_channels=4, reduction=2, mode='dot_product', sub_sample=True,
                     maxpool_stride=2)  # fmt: skip
    loss = dict(type='FBKDLoss', spatial_weight=0.5, loss_weight=3.0)
    sides = [dict(type=f'FBKD{side}Connector', **arguments) for side in ('Student', 'Teacher')]
    term = LOSSES['FBKDLoss'].term(given(loss, student=sides[0], teacher=sides[1], batch_size=3))
    ours = built(term, teacher_channels=[4])
    [trained] = ours.connectors
    torch.manual_seed(1)
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.5)
    s, t = torch.randn(2, 3, 4, 8, 9, dtype=torch.float64)

    def attention(x):
        return F.softmax(x.abs().mean(1).flatten(1) / 0.5, dim=1).view(3, 1, 8, 9) * 72

    relations = [trained.relation(mixed(trained.student_relation, s, (2, 2))),
                 mixed(trained.teacher_relation, t, (2, 2))]  # fmt: skip
    focus = (attention(s) + attention(t)) / 2
    expected = 3.0 * (
        7e-5 * (((trained.features(s) - t) ** 2 * focus).sum()).sqrt()
        + 4e-3 * torch.dist(trained.channel(s.mean((2, 3))), t.mean((2, 3)))
        + 0.5 * torch.dist(trained.spatial(s.mean(1, keepdim=True)), t.mean(1, keepdim=True))
        + 7e-5 * torch.dist(*relations)
    )
    parts = ours([s], [t])
    torch.testing.assert_close(sum(parts.values()), expected, rtol=1e-9, atol=0)


def plain_dkd(s, t, labels, tau, alpha, beta):
    p, q = (F.softmax(x / tau, dim=1) for x in (t, s))
    hit = F.one_hot(labels, s.shape[1]).double()
    two_p, two_q = (torch.stack([(x * hit).sum(1), (x * (1 - hit)).sum(1)], 1) for x in (p, q))
    rest_p, rest_q = (F.log_softmax(x / tau - 1000 * hit, dim=1) for x in (t, s))
    target = F.kl_div(two_q.log(), two_p, reduction='batchmean')
    others = F.kl_div(rest_q, rest_p.exp(), reduction='batchmean')
    return tau**2 * (alpha * target + beta * others)


def plain_wsld(s, t, labels, tau):
    soft = -(F.softmax(t / tau, dim=1) * F.log_softmax(s / tau, dim=1)).sum(1)
    hard_s, hard_t = (F.cross_entropy(x, labels, reduction='none') for x in (s, t))
    return tau**2 * ((1 - torch.exp(-hard_s / (hard_t + 1e-7))) * soft).mean()


def plain_dist(s, t, tau, inter, intra):
    def correlation(a, b):
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    p, q = (F.softmax(x / tau, dim=1) for x in (s, t))
    return tau**2 * (inter * (1 - correlation(p, q)) + intra * (1 - correlation(p.T, q.T)))


# The three are made for rows; of maps, all positions are rows.
ROWS = {
    'DKDLoss': (
        dict(tau=4.0, alpha=2.0, beta=8.0, loss_weight=0.5),
        lambda s, t, labels: 0.5 * plain_dkd(s, t, labels, 4.0, 2.0, 8.0),
    ),
    'WSLD': (
        dict(tau=2.0, loss_weight=2.5, num_classes=5),
        lambda s, t, labels: 2.5 * plain_wsld(s, t, labels, 2.0),
    ),
    'DISTLoss': (
        dict(tau=4.0, inter_loss_weight=2.0, intra_loss_weight=0.5, loss_weight=3.0),
        lambda s, t, labels: 3.0 * plain_dist(s, t, 4.0, 2.0, 0.5),
    ),
}


@pytest.mark.parametrize('kind', ROWS)
def test_losses_of_rows_are_those_of_all_pixels(kind):
    arguments, plain = ROWS[kind]
    term = LOSSES[kind].term(given(dict(type=kind, **arguments)))
    assert term.changed
    assert 'made for one row of logits an image' in term.remark
    loss = built(term)
    student, teacher = maps()
    labels = torch.randint(5, (3, 4, 6))
    needs = dict(segmentation=labels) if loss.needs else {}
    rows = (x.movedim(1, -1).flatten(0, 2) for x in (student, teacher))
    expected = plain(*rows, labels.flatten())
    # mmrazor's slip with 1000 and eps leave less than that
    torch.testing.assert_close(loss(student, teacher, **needs), expected, rtol=1e-6, atol=0)


def test_dkd_reductions_that_are_a_sum():
    for reduction in ('mean', 'none', 'sum'):
        term = LOSSES['DKDLoss'].term(given(dict(type='DKDLoss', reduction=reduction)))
        assert term.loss['reduction'] == 'sum'


def test_connectors_that_are_adapters():
    assert adapter(None) is True
    assert adapter(conv(4, act_cfg=None)) is True
    assert adapter(conv(act_cfg=None)) == dict(type='Adapter', always=True)
    assert adapter(conv(norm_cfg=dict(type='BN'), act_cfg=None)) == dict(type='Adapter', norm=True)
    plain = dict(in_channels=4, out_channels=5, kernel_size=1)
    for connector in (
        dict(type='TorchNNConnector', module_name='Conv2d', module_args=plain),
        dict(
            type='TorchFunctionalConnector',
            function_name='interpolate',
            func_args=dict(size=(8, 8), mode='bilinear'),
        ),
    ):
        assert adapter(connector) is True
    assert isinstance(Adapter(5, 5, always=True).conv, nn.Conv2d)


REFUSED = {
    'a ReLU by default': (conv(4), r'ends in ReLU, which ConvModuleConnector adds unless'),
    'a large kernel': (conv(4, kernel_size=3, act_cfg=None), r'kernel_size=3, and adapters here'),
    'no bias': (conv(4, bias=False, act_cfg=None), 'has no bias'),
    'another norm': (conv(norm_cfg=dict(type='GN', num_groups=2), act_cfg=None), 'has the norm'),
    'a norm that learns nothing': (conv(norm_cfg=BN, act_cfg=None), 'norm with affine=False'),
    'the norm first': (
        conv(act_cfg=None, order=('norm', 'conv', 'act')),
        r"has order=\('norm', 'conv', 'act'\)",
    ),
    'an unknown argument': (conv(act_cfg=None, chanels=3), "has no argument 'chanels'"),
    'a pool': (
        dict(type='TorchFunctionalConnector', function_name='avg_pool2d', func_args={}),
        'calls avg_pool2d, and what adapters here do',
    ),
    'a linear layer': (
        dict(type='TorchNNConnector', module_name='Linear', module_args={}),
        r'is Linear\(\{\}\), and adapters here',
    ),
    'a translator': (dict(type='Translator', in_channel=4, out_channel=4), 'trained beforehand'),
    'one of their own': (dict(type='MyConnector'), 'no counterpart of its connector MyConnector'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_connectors_that_are_none(name):
    connector, why = REFUSED[name]
    with pytest.raises(CannotError, match=why):
        adapter(connector)


SUMS = {
    'KLDivergence': (dict(reduction='sum'), 'grows with the size of the batch'),
    'L1Loss': (dict(reduction='sum'), 'grows with its size'),
    'PKDLoss': (dict(resize_stu=False), 'resizes the map of the teacher'),
    'ChannelWiseDivergence': (dict(temperature=4), "has no argument 'temperature'"),
}


@pytest.mark.parametrize('kind', SUMS)
def test_arguments_that_are_not_carried_over(kind):
    arguments, why = SUMS[kind]
    with pytest.raises(CannotError, match=why):
        LOSSES[kind].term(given(dict(type=kind, **arguments)))


def test_a_connector_of_the_teacher_alone():
    teacher = dict(type='TorchNNConnector', module_name='ReLU', module_args={})
    with pytest.raises(CannotError, match='TorchNNConnector changes the map of the teacher'):
        LOSSES['PKDLoss'].term(given(dict(type='PKDLoss'), teacher=teacher))
    norm = dict(type='NormConnector', in_channels=5, norm_cfg=BN)
    with pytest.raises(CannotError, match='map of the teacher alone'):
        LOSSES['ChannelWiseDivergence'].term(
            given(dict(type='ChannelWiseDivergence'), teacher=norm)
        )


def test_every_loss_of_mmrazor_is_known():
    """Those that its ``losses/__init__.py`` names in version 1.0."""
    theirs = {
        'ABLoss', 'ATLoss', 'ActivationLoss', 'AngleWiseRKD', 'CRDLoss', 'ChannelWiseDivergence',
        'DISTLoss', 'DKDLoss', 'DistanceWiseRKD', 'FBKDLoss', 'FTLoss', 'InformationEntropyLoss',
        'KDSoftCELoss', 'KLDivergence', 'L1Loss', 'L2Loss', 'MGDLoss', 'OFDLoss',
        'OnehotLikeLoss', 'PKDLoss', 'WSLD',
    }  # fmt: skip
    assert theirs <= LOSSES.keys() | REASONS.keys()
    assert not LOSSES.keys() & REASONS.keys()


def test_settings_keeps_what_is_given():
    assert settings(dict(type='X', a=1, _scope_='mmrazor'), a=0, b=2) == dict(a=1, b=2)
