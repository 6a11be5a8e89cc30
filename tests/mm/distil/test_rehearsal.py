"""What would fail in the first iteration is found when the model is built."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, nn

from kd_dense.losses import DistillLoss
from kd_dense.registry import MODELS
from kd_dense.taps import TapError
from tests.mm import methods, toy, toy_heads


@MODELS.register_module(force=True)
class HalfSizeAdapter(nn.Conv2d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1, stride=2)

    def forward(self, x, size):
        return super().forward(x)


@MODELS.register_module(force=True)
class BreakingAdapter(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()

    def forward(self, x, size):
        return {}['no such key']


@MODELS.register_module(force=True)
class DetachedLoss(DistillLoss):
    def forward(self, student, teacher):
        return (student.detach() - teacher).square().mean()


class Pooled(nn.Module):
    """A neck that also yields what is no map."""

    def forward(self, maps):
        self.pool(maps[-1])
        return maps

    def pool(self, x):
        return x.mean((2, 3))


def term(tap, loss='CWDLoss', **fields):
    return dict(term=dict(tap=tap, loss=dict(type=loss), **fields))


class TestFinds:
    def test_a_tap_that_does_not_run_while_the_loss_is_computed(self):
        terms = term(dict(student='forward', teacher='decode_head'))
        with pytest.raises(TapError, match=r"'forward' runs in the forward pass .* but not while"):
            toy.build(toy.distilled(terms=terms))

    def test_outputs_that_are_no_maps(self):
        models = [toy.build(toy.segmenter()) for _ in range(2)]
        for model in models:
            model.neck = Pooled()
        message = r"'term': cwd_loss expects two maps .*\(2, 64\).* 'neck\.pool' of the student"
        with pytest.raises(ValueError, match=message):
            toy.build(toy.distilled(*models, terms=term('neck.pool')))

    @pytest.mark.parametrize(
        ('adapter', 'message'),
        [
            ('HalfSizeAdapter', r"'term': cwd_loss expects .*\(2, 128, 4, 4\) and teacher"),
            ('BreakingAdapter', r"'term': KeyError: 'no such key'"),
        ],
    )
    def test_adapters_of_another_shape(self, adapter, message):
        terms = term('backbone.layer4', adapter=dict(type=adapter))
        with pytest.raises(ValueError, match=message):
            toy.build(toy.distilled(terms=terms))

    def test_a_loss_without_gradient(self):
        with pytest.raises(ValueError, match="'term': no gradient flows back from the loss"):
            toy.build(toy.distilled(terms=term('decode_head.conv_seg', 'DetachedLoss')))

    @pytest.mark.parametrize(
        ('tap', 'loss', 'message'),
        [
            ('bbox_head.forward_single', 'LDLoss', "'term': map 5 of the heads: expected 1 x n"),
            ('neck[:3]', 'LDLoss', "'term': .*tap the dense head, all its levels"),
            ('neck[:3]', 'LDImitationLoss', 'as many maps as levels of the head, got 3'),
            ('backbone', 'LDImitationLoss', 'as many maps as levels of the head, got 4'),
        ],
    )
    def test_maps_that_are_not_those_of_the_head(self, tap, loss, message):
        teacher = dict(config=toy_heads.detector('gfl'), checkpoint=None)
        with pytest.raises(ValueError, match=message):
            toy.build(toy_heads.distilled('gfl', teacher=teacher, terms=term(tap, loss)))

    def test_a_region_that_needs_anchors(self):
        with pytest.raises(ValueError, match=r"'term': .*a head without anchors has no overlaps"):
            toy.build(toy_heads.distilled('fcos', terms=term('bbox_head', 'LDLoss')))

    def test_a_block_with_activation_checkpointing(self):
        config = toy.distilled(terms=term('backbone.layer4.0.conv1'))
        config.student.backbone.with_cp = True
        model = toy.build(config.student)
        for module in model.modules():
            module.requires_grad_(False)
        with pytest.raises(TapError, match='no gradient flows back'):
            toy.build(toy.distilled(student=model, terms=config.terms))


class OverwrittenInTraining(nn.Module):
    """A neck whose dropout is in place, and does nothing in evaluation."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(64)

    def forward(self, maps):
        last = self.norm(maps[-1])
        return [*maps[:-1], nn.functional.dropout(last, 0.5, self.training, inplace=True)]


def test_a_map_that_is_overwritten_in_training_only():
    student = toy.build(toy.segmenter())
    student.neck = OverwrittenInTraining()
    terms = term(dict(student='neck.norm', teacher='backbone.layer4'))
    with pytest.raises(TapError, match=r"term 'term': tap 'neck\.norm': a later layer overwrites"):
        toy.build(toy.distilled(student=student, terms=terms))


def test_a_kernel_for_large_images_is_accepted():
    loss = dict(type='IntRALoss', regions='smooth', kernel=131)
    terms = dict(term=dict(tap='backbone.layer4', loss=loss))
    assert toy.build(toy.distilled(terms=terms)).kd
    loss['kernel'] = 1031
    with pytest.raises(ValueError, match=r'reaches over a whole image of \(64, 64\)'):
        toy.build(toy.distilled(terms=terms))


class TestLeavesAlone:
    @pytest.mark.parametrize('method', methods.METHODS)
    def test_the_student_and_the_terms(self, method):
        config = methods.distilled(method)
        student = toy.build(config.student)
        state, modes = copy.deepcopy(student.state_dict()), [m.training for m in student.modules()]
        attributes = [set(vars(m)) for m in student.modules()]
        random = torch.get_rng_state()
        config.student = student
        model = MODELS.build(config)
        assert torch.equal(torch.get_rng_state(), random)
        own = {k: v for k, v in model.state_dict().items() if not k.startswith('kd.')}
        assert own.keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in own.items())
        members = [m for n, m in model.named_modules() if n.partition('.')[0] != 'kd']
        assert [m.training for m in members] == modes
        assert [set(vars(m)) - {'kd_plan'} for m in members] == attributes
        for module in model.kd.modules():
            assert getattr(module, 'critic_is_due', False) is False

    def test_other_processes(self, monkeypatch):
        monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
        monkeypatch.setattr(distributed, 'all_reduce', pytest.fail)
        toy.build(toy_heads.distilled('gfl'))
        assert distributed.is_initialized()


def _needs_more(*args, **kwargs):
    raise LookupError('no depth maps')


def test_a_student_whose_loss_needs_other_data_is_built(log):
    student = toy.build(toy.segmenter())
    student.decode_head.loss = _needs_more
    model = toy.build(toy.distilled(student=student))
    assert model.kd
    assert 'cannot be computed from made-up data (LookupError: no depth maps)' in log()


def test_a_term_that_is_off_is_not_computed():
    terms = term('decode_head.conv_seg')
    terms['term']['loss'] = dict(type='DetachedLoss', weight=0.0)
    assert toy.build(toy.distilled(terms=terms)).kd
