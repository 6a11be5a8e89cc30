import pytest
import torch
from torch import nn

from kd_dense.mm.check.survey import compare, survey
from kd_dense.mm.models.probe import Yield
from kd_dense.taps import Taps
from tests.mm import toy


def places(model, size=(64, 128)):
    return {place.tap: place for place in survey(model, size)}


def test_shapes_of_a_detector():
    found = places(toy.build(toy.detector()))
    sizes = [(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)]
    assert found['neck'] == ('neck', 'FPN', Yield(1, [(2, 16, *size) for size in sizes]))
    assert found['neck.fpn_convs.*'].kind == 'ConvModule'
    assert found['neck.fpn_convs.*'].found.calls == 5
    assert found['bbox_head.retina_cls'].found.calls == 5
    assert 'neck.fpn_convs' not in found  # a list is never called


def test_every_place_can_be_tapped():
    model = toy.build(toy.segmenter()).eval()
    found = places(model)
    with torch.no_grad(), Taps(found).on(model) as taps:
        model(torch.zeros(2, 3, 64, 128), mode='tensor')
    assert 'backbone.stem.1' not in found  # overwritten by a ReLU
    for name, place in found.items():
        assert [tuple(x.shape) for x in taps[name]] == place.found.shapes, name


def test_leaves_the_model_as_it_is():
    model = toy.build(toy.segmenter()).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    places(model)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class NeedsGroundTruth(nn.Module):
    def forward(self, *args, **kwargs):
        raise KeyError('gt_instances')


def test_a_head_that_needs_ground_truth_leaves_backbone_and_neck():
    model = toy.build(toy.detector())
    model.bbox_head = NeedsGroundTruth()
    found = places(model)
    assert 'neck' in found
    assert not [name for name in found if name.startswith('bbox_head')]


def test_a_size_that_is_too_small():
    model = toy.build(toy.segmenter())
    model.backbone = NeedsGroundTruth()
    with pytest.raises(RuntimeError, match='does not run on blank images of 8x8 pixels: KeyError'):
        survey(model, (8, 8))


def verdicts(student, teacher):
    return {p.tap: p.verdict for p in compare(toy.build(student), toy.build(teacher), (64, 64))}


def test_what_can_be_distilled_in_a_segmenter():
    teacher = toy.segmenter(16)
    teacher.backbone.strides = (1, 2, 2, 1)
    teacher.decode_head.num_convs = 2
    found = verdicts(toy.segmenter(), teacher)
    assert found['backbone.layer2'] == 'adapter'
    assert found['backbone.layer4'] == 'adapter, resized'
    assert found['decode_head.conv_seg'] == 'adapter, resized'
    assert found['decode_head.convs.1'] == 'no: not in the student'


def test_what_can_be_distilled_in_a_detector():
    found = verdicts(toy.detector(classes=3), toy.detector(classes=4))
    assert found['neck'] == 'fits'
    assert found['bbox_head.retina_reg'] == 'fits'
    assert found['bbox_head.retina_cls'].startswith('no: tap')
    assert 'logits of different classes cannot be compared' in found['bbox_head.retina_cls']
