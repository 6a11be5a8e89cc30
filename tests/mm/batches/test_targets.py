"""What losses need beside the maps, and losses with parts, widths and whole pyramids."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import PixelData

from kd_dense.losses import DistillLoss
from kd_dense.mm.batches.targets import NEEDS, Step, gather
from kd_dense.registry import MODELS
from kd_dense.taps import TapError, Taps
from tests.mm import toy, toy_heads


@MODELS.register_module(force=True)
class NoseyLoss(DistillLoss):
    """Keeps what it is given."""

    needs = ('boxes', 'batch_shape', 'image_shapes')
    parts = ('near', 'far')

    def __init__(self, channels, weight=1.0):
        super().__init__(weight)
        self.scale = torch.nn.Parameter(torch.ones(channels))
        self.seen = []

    def forward(self, student, teacher, **needs):
        self.seen.append(needs)
        difference = (student - teacher).square() * self.scale[:, None, None]
        return {'near': self.weight * difference.mean(), 'far': 0 * difference.sum()}


@MODELS.register_module(force=True)
class PyramidLoss(DistillLoss):
    all_maps = True
    adaptable = False
    needs = ('head_outputs',)

    def forward(self, student, teacher, head_outputs):
        self.shapes = [[m.shape for m in maps] for maps in head_outputs]
        return sum((s - t).square().mean() for s, t in zip(student, teacher, strict=True))


@MODELS.register_module(force=True)
class GramLoss(DistillLoss):
    any_channels = True
    needs = ('segmentation',)

    def forward(self, student, teacher, segmentation):
        self.widths = student.shape[1], teacher.shape[1]
        self.segmentation = segmentation
        return (student.square().sum(1) - teacher.square().sum(1)).square().mean()


def detector(**loss):
    return toy.build(toy.distilled_detector(terms=dict(nosey=dict(tap='neck', loss=loss))))


class TestNeeds:
    def test_boxes_and_sizes_of_each_image(self):
        model = detector(type='NoseyLoss')
        inputs, samples = toy.batch(model, toy.DetScenes())
        model.train()(inputs, samples, mode='loss')
        (seen,) = model.kd.nosey.losses[1].seen
        assert seen['batch_shape'] == tuple(inputs.shape[-2:]) == (64, 64)
        assert seen['image_shapes'] == [(64, 64), (64, 50)]
        assert [len(b) for b in seen['boxes']] == [0, 1]
        assert torch.equal(seen['boxes'][1], samples[1].gt_instances.bboxes)

    def test_the_label_maps(self):
        model = toy.build(
            toy.distilled(terms=dict(gram=dict(tap='backbone', loss=dict(type='GramLoss'))))
        )
        inputs, samples = toy.batch(model)
        model.train()(inputs, samples, mode='loss')
        loss = model.kd.gram.loss
        expected = torch.cat([sample.gt_sem_seg.data for sample in samples])
        assert torch.equal(loss.segmentation, expected)
        assert loss.segmentation.shape == (2, *inputs.shape[-2:])
        for sample in samples:  # mmdet's name for them
            sample.gt_sem_seg = PixelData(sem_seg=sample.gt_sem_seg.data)
        found = gather(['segmentation'], Step(model, inputs, samples, None, None, None))
        assert torch.equal(found['segmentation'], expected)

    def test_both_heads_beside_another_tap(self):
        terms = dict(fpn=dict(tap='neck', loss=dict(type='PyramidLoss')))
        teacher = dict(config=toy.detector(), checkpoint=None)
        model = toy.build(toy.distilled_detector(terms=terms, teacher=teacher))
        toy.losses(model, toy.DetScenes())
        student, teacher = model.kd.fpn.loss.shapes
        assert student == teacher
        assert len(student) == 10  # classes and boxes on five levels

    def test_a_need_that_the_data_lacks_is_named(self):
        model = detector(type='NoseyLoss')
        inputs, samples = toy.batch(model, toy.DetScenes())
        for sample in samples:
            del sample.gt_instances
        step = Step(model, inputs, samples, None, None, None)
        with pytest.raises(ValueError, match="needs 'boxes', but the data samples have no gt_"):
            gather(['boxes'], step)

    def test_a_need_that_such_a_model_lacks_is_an_error_when_it_is_built(self):
        nosey = dict(nosey=dict(tap='decode_head.conv_seg', loss=dict(type='NoseyLoss')))
        with pytest.raises(ValueError, match=r'needs boxes, but .* has a decode_head'):
            toy.build(toy.distilled(terms=nosey))
        gram = dict(gram=dict(tap='neck', loss=dict(type='GramLoss')))
        with pytest.raises(ValueError, match=r'needs label maps, but .* has a bbox_head'):
            toy.build(toy.distilled_detector(terms=gram))

    def test_targets_that_the_head_did_not_compute_once_are_an_error(self):
        model = toy.build(toy_heads.distilled('gfl'))
        inputs, samples = toy.batch(model, toy.DetScenes())
        step = Step(model, inputs, samples, Taps(['bbox_head.get_targets']), None, None)
        with pytest.raises(TapError, match=r'head GFLHead .* and did so 0 times'):
            gather(['head_targets'], step)

    def test_every_need_of_every_loss_is_known(self):
        known = [cls for cls in MODELS.module_dict.values() if hasattr(cls, 'needs')]
        assert known
        assert {need for cls in known for need in cls.needs} <= set(NEEDS)


class TestParts:
    def test_each_part_is_logged_and_their_sum_is_trained(self):
        model = detector(type='NoseyLoss', weight=2.0)
        losses = toy.losses(model, toy.DetScenes())
        assert losses['loss_kd_nosey.near'] > 0
        assert losses['loss_kd_nosey.far'] == 0
        total, log = model.parse_losses(losses)
        assert 'loss_kd_nosey.near' in log
        total.backward()
        assert all(loss.scale.grad.abs().sum() > 0 for loss in model.kd.nosey.losses)

    def test_the_parts_of_a_term_that_is_off_are_zero(self):
        model = detector(type='NoseyLoss', weight=0.0)
        losses = toy.losses(model, toy.DetScenes())
        assert {k: float(v) for k, v in losses.items() if 'kd' in k} == {
            'loss_kd_nosey.near': 0.0,
            'loss_kd_nosey.far': 0.0,
        }
        assert not any(p.requires_grad for p in model.kd.parameters())


class TestWidths:
    def test_each_map_has_a_loss_of_the_width_of_the_teacher(self):
        model = detector(type='NoseyLoss')
        assert [len(loss.scale) for loss in model.kd.nosey.losses] == [32] * 5

    def test_a_loss_for_any_width_gets_no_adapter(self):
        terms = dict(gram=dict(tap='backbone.layer4', loss=dict(type='GramLoss')))
        model = toy.build(toy.distilled(terms=terms))
        toy.losses(model)
        assert model.kd.gram.loss.widths == (64, 128)
        assert not list(model.kd.parameters())

    def test_a_loss_that_takes_no_adapter_says_so(self):
        terms = dict(fpn=dict(tap='neck', loss=dict(type='PyramidLoss')))
        with pytest.raises(ValueError, match=r"'fpn': .*and PyramidLoss compares maps of one sha"):
            ROOT_MODELS.build(toy.distilled_detector(terms=terms))
