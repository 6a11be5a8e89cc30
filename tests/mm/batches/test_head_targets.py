"""Targets are read off what the head computed for its own loss, whatever the head."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.task_modules.prior_generators import anchor_inside_flags

from kd_dense.mm.batches import head_targets
from kd_dense.taps import Taps
from tests.mm import toy, toy_heads

KINDS = tuple(toy_heads.HEADS)
ANCHORED = tuple(kind for kind in KINDS if kind != 'fcos')
COUNT = 4


def step(kind, **head):
    """One training step of a plain student, and the targets that were read off it."""
    config = toy_heads.detector(kind, **head)
    model = toy.build(config).train()
    inputs, samples = toy.batch(model, toy.DetScenes(), COUNT)
    return model, inputs, samples, *read(model, inputs, samples)


def read(model, inputs, samples):
    taps = Taps(['bbox_head', 'bbox_head.get_targets'])
    with taps.on(model):
        model(inputs, samples, mode='loss')
    (returned,) = taps.returned('bbox_head.get_targets')
    maps = taps['bbox_head']
    return returned, maps, head_targets.read(model.bbox_head, returned, maps, samples)


def assigned(model, samples, index, targets):
    """Labels and weights of one image, computed for that image alone."""
    head, truth = model.bbox_head, samples[index].gt_instances
    priors = [p.clone() for p in targets.priors]
    if targets.priors[0].shape[1] == 2:
        labels, _ = head.get_targets(priors, [truth])
        return torch.cat(labels), None
    metas = [samples[index].metainfo]
    _, flags = head.get_anchors(level_sizes(targets, head), metas, device='cpu')
    found = head.get_targets([priors], flags, [truth], metas)
    labels, weights = found[1:3] if found[0][0].dim() == 3 else found[:2]
    return torch.cat(labels, 1)[0], torch.cat(weights, 1)[0]


def level_sizes(targets, head):
    """Heights and widths of square levels."""
    side = [(p.shape[0] // head.num_base_priors) ** 0.5 for p in targets.priors]
    return [(round(s), round(s)) for s in side]


@pytest.mark.parametrize('kind', KINDS)
class TestRead:
    def test_labels_and_weights_of_each_image(self, kind):
        model, _, samples, _, _, targets = step(kind)
        assert targets.num_classes == 3
        found = torch.cat(targets.labels, 1)
        weights = torch.cat(targets.label_weights, 1)
        assert ((found < 3).sum(1) > 0).tolist() == [False, True, True, True]
        for image in range(COUNT):
            labels, label_weights = assigned(model, samples, image, targets)
            assert torch.equal(found[image], labels)
            if label_weights is None:
                assert (weights[image] == 1).all()
            else:
                assert torch.equal(weights[image], label_weights)

    def test_boxes_of_each_image(self, kind):
        _, _, samples, _, _, targets = step(kind)
        assert [len(b) for b in targets.boxes] == [0, 1, 2, 3]
        for boxes, sample in zip(targets.boxes, samples, strict=True):
            assert torch.equal(boxes, sample.gt_instances.bboxes)

    def test_priors_are_in_the_order_of_the_maps(self, kind):
        model, _, _, _, maps, targets = step(kind)
        assert targets.strides == toy_heads.STRIDES
        for m, priors, stride in zip(maps, targets.priors, targets.strides, strict=False):
            per_position = model.bbox_head.num_base_priors
            positions = priors.view(*m.shape[-2:], per_position, -1)
            centers = (positions[..., :2] + positions[..., -2:]) / 2
            offset = stride / 2 if kind == 'fcos' else 0
            for y in range(m.shape[2]):
                for x in range(m.shape[3]):
                    expected = torch.tensor([x, y]) * stride + offset
                    assert torch.allclose(centers[y, x], expected.float(), atol=1e-4)

    def test_nothing_is_assigned_again(self, kind, monkeypatch):
        model, _, samples, returned, maps, _ = step(kind)
        monkeypatch.setattr(model.bbox_head, 'get_targets', None)
        monkeypatch.setattr(model.bbox_head, 'assigner', None, raising=False)
        head_targets.read(model.bbox_head, returned, maps, samples)

    def test_ground_truth_in_box_structures(self, kind):
        from mmdet.structures.bbox import HorizontalBoxes

        model, _, samples, returned, maps, targets = step(kind)
        for sample in samples:
            sample.gt_instances.bboxes = HorizontalBoxes(sample.gt_instances.bboxes)
        again = head_targets.read(model.bbox_head, returned, maps, samples)
        assert all(torch.equal(a, b) for a, b in zip(again.boxes, targets.boxes, strict=True))


class TestValid:
    @pytest.mark.parametrize('kind', ANCHORED)
    @pytest.mark.parametrize('border', [-1, 0, 4])
    def test_is_the_rule_of_mmdet(self, kind, border):
        config = toy_heads.detector(kind)
        config.train_cfg.allowed_border = border
        config.data_preprocessor.pad_size_divisor = 1
        model = toy.build(config).train()
        inputs, samples = toy.batch(model, toy.DetScenes(sizes=(64, 50)), COUNT)
        _, _, targets = read(model, inputs, samples)
        head, found = model.bbox_head, torch.cat(targets.valid, 1)
        sizes = level_sizes(targets, head)
        for image, sample in enumerate(samples):
            shape = sample.metainfo['img_shape']
            _, (flags,) = head.get_anchors(sizes, [sample.metainfo], device='cpu')
            expected = anchor_inside_flags(
                torch.cat(targets.priors), torch.cat(flags), shape, border
            )
            assert torch.equal(found[image], expected)
            if border == 0 or shape[1] < 64:
                assert not expected.all()

    def test_all_points_are(self):
        *_, targets = step('fcos')
        assert all(level.all() for level in targets.valid)


def neck_term():
    """A term that asks for the targets without comparing maps of the head."""
    loss = dict(type='LDImitationLoss', region='main')
    return dict(im=dict(tap='neck', loss=loss))


class TestCheck:
    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(num_classes=4), 'student has num_classes 3, that of the teacher 4'),
            (
                dict(anchor_generator=dict(toy_heads.ANCHORS, strides=[4, 8, 16, 32, 64])),
                r'student has strides \[\(8, 8\), .*that of the teacher \[\(4, 4\)',
            ),
        ],
    )
    def test_another_layout_is_an_error_when_the_model_is_built(self, change, message):
        teacher = toy_heads.detector('atss', 8, **change)
        config = toy.distilled(
            toy_heads.detector('atss'), dict(config=teacher, checkpoint=None), neck_term()
        )
        with pytest.raises(ValueError, match=message):
            toy.build(config)

    def test_other_anchors_are_too(self):
        with pytest.raises(ValueError, match='anchors per position'):
            head_targets.check(
                toy.build(toy_heads.detector('atss')), toy.build(toy_heads.detector('retina'))
            )

    def test_distances_from_other_places_are_too(self):
        with pytest.raises(ValueError, match=r'first centre \(0\.0, 0\.0\), .* \(4\.0, 4\.0\)'):
            head_targets.check(
                toy.build(toy_heads.detector('atss')), toy.build(toy_heads.detector('fcos'))
            )

    def test_heads_without_distributions_are_fine(self):
        head_targets.check(toy.build(toy.detector()), toy.build(toy.detector(16)))

    def test_a_model_without_a_dense_head_is_named(self):
        with pytest.raises(ValueError, match=r'student .* no bbox_head, .* one of GFL, ATSS'):
            head_targets.check(toy.build(toy.segmenter()), toy.build(toy.detector()))

    @pytest.mark.parametrize('reg_max', [None, 16])
    def test_distributions_that_cannot_be_compared_are_an_error_of_their_loss(self, reg_max):
        teacher = toy_heads.detector('gfl', 16, reg_max=16)
        if reg_max is None:
            teacher.type, teacher.bbox_head = 'ATSS', dict(teacher.bbox_head, type='ATSSHead')
            del teacher.bbox_head.reg_max
        terms = dict(ld=dict(tap='bbox_head[:10]', loss=dict(type='LDLoss')))
        config = toy.distilled(
            toy_heads.detector('gfl'), dict(config=teacher, checkpoint=None), terms
        )
        with pytest.raises(ValueError, match='LDLoss compares maps of one shape only'):
            toy.build(config)

    def test_a_head_whose_targets_are_unknown_is_named(self):
        student = toy.build(toy.detector())
        student.bbox_head.reg_max = 8
        student.bbox_head.__class__ = type('OddHead', (torch.nn.Module,), {})
        with pytest.raises(ValueError, match=r'what OddHead.get_targets returns; expected one'):
            head_targets.check(student, student)

    def test_another_family_may_teach_where_the_layout_agrees(self):
        student, teacher = toy_heads.detector('gfl'), toy_heads.detector('atss', 16)
        terms = dict(ld=dict(tap='bbox_head[:10]', loss=dict(type='LDLoss')))
        config = toy.distilled(student, dict(config=teacher, checkpoint=None), terms)
        assert toy.losses(toy.build(config), toy.DetScenes())['loss_kd_ld.main'] > 0
