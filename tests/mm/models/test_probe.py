import contextlib
import copy
from functools import cache

import pytest
import torch

from kd_dense.mm.models import probe as probe_module
from kd_dense.mm.models.probe import QuickNorms, Yield, needs_features_only, probe
from kd_dense.taps import TapError
from tests.mm import toy


def yields(model, *taps):
    return probe(model, taps, model, taps)[0]


def test_shapes_of_a_segmenter():
    found = yields(toy.build(toy.segmenter()), 'backbone', 'backbone[-1]', 'decode_head.conv_seg')
    assert found == {
        'backbone': Yield(1, [(2, c, s, s) for c, s in ((8, 16), (16, 8), (32, 8), (64, 8))]),
        'backbone[-1]': Yield(1, [(2, 64, 8, 8)]),
        'decode_head.conv_seg': Yield(1, [(2, 5, 8, 8)]),
    }


def test_calls_of_a_shared_head():
    found = yields(toy.build(toy.detector()), 'bbox_head.retina_cls', 'neck[:2]')
    assert found['bbox_head.retina_cls'].calls == 5
    assert [s[-1] for s in found['bbox_head.retina_cls'].shapes] == [8, 4, 2, 1, 1]
    assert found['neck[:2]'] == Yield(1, [(2, 16, 8, 8), (2, 16, 4, 4)])


@pytest.mark.parametrize('config', [toy.segmenter(), toy.detector()])
def test_leaves_the_model_as_it_is(config):
    model = toy.build(config).train()
    model.backbone.layer1.eval()
    modes = [m.training for m in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = [vars(m).keys() for m in model.modules()]
    yields(model, 'backbone')
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [vars(m).keys() for m in model.modules()] == attributes
    assert all(p.requires_grad for p in model.parameters())


def test_copies_no_weights(monkeypatch):
    devices = []
    replicate = probe_module.replicate
    monkeypatch.setattr(
        probe_module,
        'replicate',
        lambda model, device: devices.append(device) or replicate(model, device),
    )
    yields(toy.build(toy.detector()), 'neck')
    assert devices == ['meta', 'meta']


@pytest.mark.parametrize(
    ('norm', 'size', 'wrong'),
    [
        (torch.nn.BatchNorm2d(8), (2, 8, 3, 4), (2, 6, 3, 4)),
        (torch.nn.SyncBatchNorm(8), (2, 8, 3, 4), (2, 6, 3, 4)),
        (torch.nn.GroupNorm(4, 8), (2, 8, 3, 4), (2, 6, 3, 4)),
        (torch.nn.GroupNorm(8, 8), (2, 8, 1, 1), (1, 8, 1, 1)),
        (torch.nn.LayerNorm(8), (2, 5, 8), (2, 5, 6)),
        (torch.nn.LayerNorm((3, 4)), (3, 4), (4, 3)),
    ],
)
def test_norms_that_are_spared_yield_and_refuse_the_same(norm, size, wrong):
    norm = norm.eval().to('meta')
    found = []
    for spared in (contextlib.nullcontext(), QuickNorms()):
        with torch.device('meta'), torch.no_grad(), spared:
            yielded = norm(torch.empty(size).transpose(-1, -2).contiguous().transpose(-1, -2))
            with pytest.raises((RuntimeError, ValueError)) as error:
                norm(torch.empty(wrong))
        found.append((yielded.shape, yielded.dtype, yielded.device, str(error.value)))
    assert found[0] == found[1]


def test_runs_on_the_cpu_where_meta_cannot():
    model = toy.build(toy.segmenter())
    model.neck = NeedsData()
    assert yields(model, 'neck')['neck'].shapes[-1] == (2, 64, 8, 8)


class NeedsData(torch.nn.Module):
    def forward(self, maps):
        float(maps[0].sum())
        return maps


class NeedsSize(torch.nn.Module):
    def __init__(self, smallest):
        super().__init__()
        self.smallest = smallest

    def forward(self, maps):
        if maps[0].shape[-1] < self.smallest:
            raise ValueError('too small')
        return maps


class Refuses(torch.nn.Module):
    def forward(self, maps):
        raise AssertionError


def test_tries_a_larger_size_where_a_layer_refuses_the_small_one():
    model, small = toy.build(toy.segmenter()), toy.build(toy.segmenter())
    model.neck = NeedsSize(48)
    assert yields(model, 'neck')['neck'].shapes[0] == (2, 8, 64, 64)
    found = probe(small, ['backbone[0]'], model, ['backbone[0]'])
    assert found.student['backbone[0]'].shapes == found.teacher['backbone[0]'].shapes
    assert found.size == (256, 256)
    assert not found.student_by_loss
    assert not found.by_loss


def test_a_size_may_come_before_all_others():
    model = toy.build(toy.segmenter())
    found = probe(model, ['backbone'], model, ['backbone'], first=(72, 104))
    assert found.size == (72, 104)
    assert found.student['backbone'].shapes[-1] == (2, 64, 9, 13)
    model.neck = NeedsSize(48)
    assert probe(model, ['neck'], model, ['neck'], first=(72, 104)).size == (256, 256)


def test_says_why_a_model_cannot_be_tried_out():
    model = toy.build(toy.segmenter())
    model.neck = NeedsSize(10**6)
    with pytest.raises(RuntimeError, match=r'(?s)cannot be tried out.*64x64 pixels: too small'):
        yields(model, 'neck')


def test_an_error_without_words_has_the_name_of_its_class():
    model = toy.build(toy.segmenter())
    model.neck = Refuses()
    with pytest.raises(RuntimeError, match='64x64 pixels: AssertionError'):
        yields(model, 'neck')


@pytest.mark.parametrize(
    ('names', 'features'),
    [
        (['backbone', 'neck[:2]', 'backbone.layer4'], True),
        (['neck.fpn_convs.0.conv'], True),
        (['neck', 'bbox_head'], False),
        (['decode_head.conv_seg'], False),
        (['backbone_aux'], False),
    ],
)
def test_features_only(names, features):
    assert needs_features_only(names) is features


AUXILIARY = dict(
    type='FCNHead',
    in_channels=16,
    in_index=1,
    channels=8,
    num_convs=1,
    num_classes=5,
    norm_cfg=dict(type='BN'),
)


@cache
def loss_head():
    """A head with a layer that it runs while it computes its loss."""
    from mmseg.models.decode_heads import FCNHead

    class LossHead(FCNHead):
        def loss_by_feat(self, seg_logits, batch_data_samples):
            return super().loss_by_feat(self.extra(seg_logits), batch_data_samples)

    return LossHead


class TestAuxiliaryHeads:
    """Which segmenters run in their loss alone."""

    @staticmethod
    def model(width=8, count=1, **others):
        auxiliary = dict(AUXILIARY, in_channels=2 * width)
        heads = auxiliary if count == 1 else [auxiliary] * count
        return toy.build(toy.segmenter(width, auxiliary_head=heads, **others))

    @pytest.mark.parametrize(
        ('count', 'tap'),
        [
            (1, 'auxiliary_head'),
            (1, 'auxiliary_head.conv_seg'),
            (2, 'auxiliary_head.1.conv_seg'),
            (2, 'auxiliary_head.*.conv_seg'),
        ],
    )
    def test_run_behind_the_features_where_they_are_tapped(self, count, tap):
        model = self.model(count=count)
        attributes = [vars(m).keys() for m in model.modules()]
        taps = [tap, 'decode_head.conv_seg']
        found = probe(model, taps, self.model(16, count), taps)
        assert not found.student_by_loss
        assert not found.by_loss
        calls = 2 if '*' in tap else 1
        for side in (found.student, found.teacher):
            assert side[tap] == Yield(calls, [(2, 5, 8, 8)] * calls)
            assert side['decode_head.conv_seg'] == Yield(1, [(2, 5, 8, 8)])
        assert [vars(m).keys() for m in model.modules()] == attributes

    def test_others_do_not_run(self):
        model = self.model(count=2)
        model.auxiliary_head[0].forward = lambda *_: {}['not asked for']
        assert not probe(model, [], model, ['auxiliary_head.1']).by_loss

    def test_are_distilled(self):
        student, teacher = self.model(dropout=0.0), self.model(16)
        term = dict(tap='auxiliary_head.conv_seg', loss=toy.CWD)
        model = toy.build(toy.distilled(student=student, teacher=teacher, terms=dict(term=term)))
        runs = []
        teacher.decode_head.register_forward_pre_hook(lambda *_: runs.append(1))
        losses = toy.losses(model)
        assert losses['loss_kd_term'] > 0
        assert not runs  # the teacher stops before


class TestTapsThatRunInTheLossAlone:
    @staticmethod
    def model(width=8, **others):
        model = toy.build(toy.segmenter(width, **others))
        model.decode_head.extra = torch.nn.Conv2d(5, 5, 1)
        model.decode_head.__class__ = loss_head()
        return model

    def test_are_found_there(self):
        model = self.model()
        taps = ['decode_head.extra', 'decode_head.conv_seg']
        found = probe(model, taps, self.model(16), taps)
        assert found.student_by_loss
        assert found.by_loss
        assert found.size == (64, 64)
        for side in (found.student, found.teacher):
            assert side == dict.fromkeys(taps, Yield(1, [(2, 5, 8, 8)]))

    def test_decide_for_their_own_model_alone(self):
        model = self.model()
        found = probe(model, ['decode_head.conv_seg'], self.model(), ['decode_head.extra'])
        assert not found.student_by_loss
        assert found.by_loss

    def test_leave_the_model_as_it_is(self):
        model = self.model().train()
        state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        yields(model, 'decode_head.extra')
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def test_a_larger_size_is_tried_where_the_loss_refuses_the_small_one(self):
        model = self.model()
        model.neck = NeedsSize(48)
        assert probe(model, ['decode_head.extra'], model, ['decode_head.extra']).size == (256, 256)

    def test_those_that_never_run_are_refused(self):
        model = self.model()
        model.spare = torch.nn.Conv2d(1, 1, 1)
        message = r"tap 'spare' never runs in the forward pass of EncoderDecoder, nor in its loss"
        with pytest.raises(TapError, match=message):
            yields(model, 'spare')

    def test_and_it_is_told_where_the_loss_cannot_be_computed(self):
        model = self.model()
        model.spare = torch.nn.Conv2d(1, 1, 1)
        model.decode_head.loss = lambda *_: {}['no depth maps']
        message = r"'spare' never runs in the forward .* its loss .*KeyError: 'no depth maps'"
        with pytest.raises(TapError, match=message):
            yields(model, 'spare')

    @pytest.mark.parametrize(
        'tap',
        [
            'decode_head.extra',
            dict(student='decode_head.conv_seg', teacher='decode_head.extra'),
            dict(student='decode_head.extra', teacher='decode_head.conv_seg'),
        ],
        ids=['both', 'teacher', 'student'],
    )
    def test_train(self, tap):
        student, teacher = self.model(dropout=0.0), self.model(16)
        terms = dict(term=dict(tap=tap, loss=toy.CWD))
        model = toy.build(toy.distilled(student=student, teacher=teacher, terms=terms))
        state = copy.deepcopy(teacher.state_dict())
        losses = toy.losses(model)
        assert losses['loss_kd_term'] > 0
        losses['loss_kd_term'].backward()
        assert model.backbone.stem[0].weight.grad.abs().sum() > 0
        assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())


class TestListsOfModules:
    @pytest.mark.parametrize('tap', ['neck.fpn_convs', 'neck.fpn_convs[0]'])
    def test_are_no_taps_and_what_they_hold_is_proposed(self, tap):
        message = (
            r"tap 'neck\.fpn_convs.*' can never run: a ModuleList has .*; "
            r"say 'neck\.fpn_convs\.\*'"
        )
        with pytest.raises(TapError, match=message):
            yields(toy.build(toy.detector()), tap)

    def test_what_is_proposed_can_be_done(self):
        found = yields(toy.build(toy.detector()), 'neck.fpn_convs.*')
        assert found['neck.fpn_convs.*'].calls == 5
