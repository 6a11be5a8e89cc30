import copy

import pytest
import torch

from kd_dense.mm.models import probe as probe_module
from kd_dense.mm.models.probe import Yield, needs_features_only, probe
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


def test_tries_a_larger_size_where_a_layer_refuses_the_small_one():
    model, small = toy.build(toy.segmenter()), toy.build(toy.segmenter())
    model.neck = NeedsSize(48)
    assert yields(model, 'neck')['neck'].shapes[0] == (2, 8, 64, 64)
    found = probe(small, ['backbone[0]'], model, ['backbone[0]'])
    assert found.student['backbone[0]'].shapes == found.teacher['backbone[0]'].shapes
    assert found.size == (256, 256)
    assert not found.student_by_loss
    assert not found.by_loss


def test_says_why_a_model_cannot_be_tried_out():
    model = toy.build(toy.segmenter())
    model.neck = NeedsSize(10**6)
    with pytest.raises(RuntimeError, match=r'(?s)cannot be tried out.*64x64 pixels: too small'):
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
