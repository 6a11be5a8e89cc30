"""Features of the student go through the rest of the teacher's head."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from kd_dense.losses.predictions.crosskd import aligned
from kd_dense.mm.models.towers import RestOfHead, find_tower
from kd_dense.taps import Taps, tensors_in
from tests.mm import toy, toy_heads
from tests.mm.distil.test_predictions import distilled, ours, step, untrained

CROSSKD = dict(type='CrossKDLoss')
# As the authors set it.
SETTINGS = {
    'gfl': dict(boxes='distributions', box_weight=4.0),
    'retina': {},
    'atss': dict(centerness_weight=1.0),
    'fcos': dict(class_weight=0.4, box_weight=0.75, boxes='iou', normaliser='centerness'),
}
WIDER = dict(feat_channels=24)


def head(kind, width=8, **fields):
    if kind == 'gfl':
        return toy_heads.detector('gfl', width, **dict(dict(stacked_convs=2), **fields))
    return toy_heads.plain(kind, width, **fields)


def crossing(kind, at=1, student=None, teacher=None, **fields):
    return distilled(
        head(kind) if student is None else student,
        head(kind, 16) if teacher is None else teacher,
        dict(CROSSKD, **SETTINGS[kind]),
        cross_at=at,
        **fields,
    )


@pytest.mark.parametrize('kind', SETTINGS)
@pytest.mark.parametrize('at', [0, 1, -1, 2])
def test_heads_of_the_authors(kind, at):
    model = crossing(kind, at)
    found = step(model)
    on = {'classes', 'boxes'} | ({'centerness'} if kind == 'atss' else set())
    assert {k.rpartition('.')[2] for k, v in found.items() if v > 0} == on
    tap = model.kd.term.student_tap
    assert tap == ('neck' if at == 0 else f'bbox_head.cls_convs|reg_convs.{(at - 1) % 2}' if at > 0
                   else 'bbox_head.cls_convs|reg_convs.0')  # fmt: skip


def test_a_channel_that_is_shut_has_no_gradient():
    teacher = toy.build(head('gfl', 16)).eval().requires_grad_(False)
    rest = RestOfHead(teacher.bbox_head, 1)
    maps = [torch.rand(2, 16, size, size) for size in (8, 4, 2) * 2]
    shut = [m.clone() for m in maps]
    for one in shut:
        one[:, 3] = 0
        one.requires_grad_()
    sum(one.square().sum() for one in rest(shut, maps)).backward()
    for one in shut:
        assert one.grad[:, 3].eq(0).all()
        assert one.grad.isfinite().all()
        assert one.grad.abs().max() < 1e3


def test_only_the_features_before_learn():
    model = crossing('atss', 1)
    losses = ours(toy.losses(model, toy.DetScenes(), 4))
    sum(losses.values()).backward()
    reached = {n for n, p in model.bbox_head.named_parameters() if p.grad is not None}
    assert {n.split('.')[1] for n in reached} == {'0'}
    assert {n.split('.')[0] for n in reached} == {'cls_convs', 'reg_convs'}


@pytest.mark.parametrize('kind', SETTINGS)
def test_what_comes_out_is_the_rest_of_the_head(kind):
    """With features of the teacher itself: what the whole head predicts."""
    teacher = toy.build(head(kind)).eval().requires_grad_(False)
    inputs, _ = toy.batch(teacher, toy.DetScenes(sizes=(64,)), 2)
    for at in (0, 1, 2):
        tap, count = find_tower(teacher, 'bbox_head', 'teacher', at)
        taps = Taps([tap])
        with taps.on(teacher):
            expected = [*tensors_in(teacher.bbox_head(teacher.extract_feat(inputs)))]
        rest, before = RestOfHead(teacher.bbox_head, count), copy.deepcopy(vars(teacher.bbox_head))
        found = rest(taps[tap], taps[tap])
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
        assert vars(teacher.bbox_head).keys() == before.keys()
        assert not any('forward' in vars(m) for m in teacher.bbox_head.modules())


def test_the_head_is_left_alone_where_it_fails():
    teacher = toy.build(head('atss')).eval()
    maps = [torch.randn(1, 5, 8, 8)] * 4  # of another width
    with pytest.raises(RuntimeError, match='channels'):
        RestOfHead(teacher.bbox_head, 1)(maps, maps)
    assert not any('forward' in vars(m) for m in teacher.bbox_head.modules())


def test_other_widths_get_an_adapter():
    model = crossing('atss', teacher=head('atss', 16, **WIDER))
    names = {n for n, _ in model.kd.named_parameters()}
    assert len(names) == 2 * 10  # five levels of two towers
    step(model)
    assert all(p.grad is not None for p in model.kd.parameters())


def test_towers_of_other_lengths():
    for convs, at, tap in (
        (1, -1, 'cls_convs|reg_convs.0'),
        (3, -1, 'cls_convs|reg_convs.1'),
        (3, 0, None),
    ):
        model = crossing('atss', at, student=head('atss', stacked_convs=convs))
        assert model.kd.term.student_tap == (f'bbox_head.{tap}' if tap else 'neck')
        step(model)


def test_the_teacher_is_a_guest():
    model = crossing('gfl')
    teacher = model.kd_plan.teacher.model
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    step(model)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not [*model.kd.parameters()]
    assert not [*model.kd.state_dict()]
    other = copy.deepcopy(model)
    assert other.kd.term._rest.head is teacher.bbox_head
    left = pickle.loads(pickle.dumps(model.kd.term._rest))
    with pytest.raises(RuntimeError, match='leaves its teacher behind'):
        left([], [])


@pytest.mark.parametrize(
    'fields', [dict(channels_last=True), dict(precision='bf16', channels_last=True)], ids=str
)
def test_options_of_the_teacher(fields):
    student, teacher = head('gfl'), dict(untrained(head('gfl', 16)), **fields)
    terms = dict(term=dict(tap='bbox_head', cross_at=1, loss=dict(CROSSKD, **SETTINGS['gfl'])))
    model = toy.build(toy.distilled(student, teacher, terms)).train()
    plain = crossing('gfl')
    for found, expected in zip(step(model).values(), step(plain).values(), strict=True):
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=0.2)


def test_under_autocast():
    model = crossing('atss')
    inputs, samples = toy.batch(model, toy.DetScenes(), 4)
    exact = ours(model(inputs, samples, mode='loss'))
    with torch.autocast('cpu', torch.bfloat16):
        found = ours(model(inputs, samples, mode='loss'))
    sum(found.values()).backward()
    for key, value in found.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, exact[key], rtol=0.2)


def test_shares_weigh_it():
    model = crossing('atss', share=1.0)
    for _ in range(2):
        losses = toy.losses(model, toy.DetScenes(), 4)
        model.parse_losses(losses)[0].backward()
    assert losses['kd_share_term'] > 0
    assert losses['kd_weight_term'] > 0


def test_a_picture_without_objects():
    for kind in ('gfl', 'fcos'):
        model = crossing(kind)
        found = ours(toy.losses(model, toy.DetScenes(), 1))
        assert all(v.isfinite() for v in found.values())
        sum(found.values()).backward()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(at=3), r"'term': cross_at=3: the towers of the teacher ATSS have 2 .* -2 to 2"),
        (dict(at='x'), "'term': expected cross_at as a number of convolutions, got 'x'"),
        (
            dict(student=head('atss', stacked_convs=1), at=2),
            'the towers of the student ATSS have 1 convolutions',
        ),
        (
            dict(teacher=toy.segmenter()),
            r"the teacher EncoderDecoder has no towers of convolutions at 'bbox_head'",
        ),
        (dict(teacher=toy_heads.plain('atss', 16, num_classes=4)), 'num_classes 3, that of the'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_when_the_model_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        crossing('atss', **change)


def test_a_misspelt_field_is_named():
    with pytest.raises(ValueError, match=r"unknown field 'cross_it', did you mean 'cross_at'"):
        distilled(head('atss'), head('atss', 16), CROSSKD, cross_it=1)


def test_channels_get_the_spread_of_the_teacher():
    student, teacher = (3 * torch.randn(2, 4, 5, 6) + i for i in (0, 2))
    out = aligned(student, teacher)
    for one in (torch.mean, torch.std):
        found, expected = (one(x.transpose(0, 1).flatten(1), 1) for x in (out, teacher))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_towers_may_be_of_one_level_each():
    def rtmdet(width):
        config = toy_heads.detector('atss', width)
        config.type = 'RTMDet'
        config.neck.num_outs = 3
        config.neck.add_extra_convs = False
        config.bbox_head = dict(
            type='RTMDetSepBNHead',
            num_classes=3,
            in_channels=2 * width,
            feat_channels=16,
            stacked_convs=2,
            share_conv=True,
            with_objectness=False,
            exp_on_reg=True,
            norm_cfg=dict(type='BN'),
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
            loss_bbox=toy_heads.GIOU,
        )
        config.train_cfg = dict(
            assigner=dict(type='DynamicSoftLabelAssigner', topk=13),
            allowed_border=-1,
            pos_weight=-1,
        )
        return config

    model = distilled(rtmdet(8), rtmdet(16), CROSSKD, cross_at=-1)
    assert model.kd.term.student_tap == 'bbox_head.cls_convs|reg_convs.*.0'
    assert all(v > 0 for k, v in step(model).items() if not k.endswith('centerness'))
