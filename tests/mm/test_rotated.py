"""Rotated detectors: their boxes, their heads with distributions, and distillation on them."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DefaultScope

from kd_dense.mm.batches import head_targets
from kd_dense.mm.batches.boxes import is_rotated, upright
from kd_dense.mm.batches.made_up import Labels, add_labels, blank_batch, random_batch
from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from kd_dense.mm.presets.choose import choose_preset
from kd_dense.mm.stack import install
from kd_dense.taps import Taps
from tests.mm import toy, toy_rotated
from tests.mm.pictures.looking import drawn, see, texts
from tests.mm.toy_rotated import KINDS, LD, RotatedScenes, needs_mmrotate

FGD = dict(tap='neck', loss=dict(type='FGDLoss'))


@pytest.fixture
def mmrotate(monkeypatch):
    """As with a config of mmrotate, which says this."""
    # Compiled, it runs on GPUs alone: RotatedIoULoss of FCOS.
    diff_iou = import_module('mmcv.ops.diff_iou_rotated')
    monkeypatch.setattr(diff_iou, 'ext_module', install._make_module())
    with DefaultScope.overwrite_default_scope('mmrotate'):
        yield


def terms(kind):
    """What a preset distils of each."""
    found = dict(
        cwd=dict(tap='neck', loss=toy.CWD),
        fgd=FGD,
        pkd=dict(tap='neck', loss=dict(type='PKDLoss')),
    )
    if kind in LD:
        found['ld'] = dict(tap='bbox_head', loss=LD[kind])
    return found


def total(losses):
    found = (sum(x) if isinstance(x, list) else x for name, x in losses.items() if 'loss' in name)
    return sum(found)


def step(kind, **head):
    """A training step of a plain student, and the targets that were read off it."""
    model = toy.build(toy_rotated.detector(kind, **head)).train()
    inputs, samples = toy.batch(model, RotatedScenes(), 4)
    taps = Taps(['bbox_head', 'bbox_head.get_targets'])
    with taps.on(model):
        model(inputs, samples, mode='loss')
    (returned,) = taps.returned('bbox_head.get_targets')
    maps = taps['bbox_head']
    return (
        model,
        samples,
        returned,
        maps,
        head_targets.read(model.bbox_head, returned, maps, samples),
    )


class TestUpright:
    def test_of_rotated_boxes_is_what_is_around_their_corners(self):
        boxes = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)) * 20
        x, y, w, h, angle = boxes.T
        xs, ys = [], []
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            xs.append(x + a * w / 2 * angle.cos() - b * h / 2 * angle.sin())
            ys.append(y + a * w / 2 * angle.sin() + b * h / 2 * angle.cos())
        xs, ys = torch.stack(xs), torch.stack(ys)
        expected = torch.stack([xs.amin(0), ys.amin(0), xs.amax(0), ys.amax(0)], 1)
        torch.testing.assert_close(upright(boxes), expected)
        quadrilaterals = torch.stack([xs.T, ys.T], 2).flatten(1)
        torch.testing.assert_close(upright(quadrilaterals), expected)
        typed = SimpleNamespace(tensor=boxes)
        assert torch.equal(upright(typed), upright(boxes))

    @pytest.mark.parametrize('width', [2, 4])
    def test_leaves_points_and_upright_boxes_alone(self, width):
        boxes = torch.rand(3, width)
        assert upright(boxes) is boxes

    @pytest.mark.parametrize('width', [4, 5, 8])
    def test_of_no_boxes(self, width):
        assert upright(torch.zeros(0, width)).shape == (0, 4)

    def test_names_what_it_cannot_take(self):
        with pytest.raises(ValueError, match=r'rotated boxes \(n, 5\) .* got \(3, 6\)'):
            upright(torch.zeros(3, 6))

    @needs_mmrotate
    def test_is_that_of_mmrotate(self):
        from mmrotate.structures import RotatedBoxes

        boxes = RotatedBoxes(torch.rand(50, 5) * 20)
        torch.testing.assert_close(upright(boxes), boxes.convert_to('hbox').tensor)


def test_mmdet_is_not_taken_for_it():
    model = toy.build(toy.detector())
    assert not is_rotated(model)
    assert type(
        random_batch(model, (64, 64), Labels())['data_samples'][0].gt_instances.bboxes
    ) is (torch.Tensor)


def test_with_compiled_operators_metrics_are_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmrotate.evaluation.functional.mean_ap', None)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', SimpleNamespace())
    install.score_in_threads()


@needs_mmrotate
@pytest.mark.usefixtures('mmrotate')
class TestMadeUp:
    def test_boxes_are_of_its_type(self):
        from mmrotate.structures import RotatedBoxes

        model = toy.build(toy_rotated.detector('retina'))
        assert is_rotated(model)
        _, samples = blank_batch(model, (64, 64), 'cpu')
        add_labels(model, samples, (64, 64))
        made_up = random_batch(model, (64, 64), Labels(3))['data_samples']
        for one in [*samples, *made_up]:
            assert isinstance(one.gt_instances.bboxes, RotatedBoxes)


@needs_mmrotate
@pytest.mark.usefixtures('mmrotate')
@pytest.mark.parametrize('kind', KINDS)
def test_trains_and_predicts(kind):
    config = toy_rotated.distilled(kind, terms(kind))
    model = toy.build(config)
    losses = toy.losses(model, RotatedScenes(), 4)
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    for name in config.terms:
        parts = [float(x) for key, x in losses.items() if key.startswith(f'loss_kd_{name}')]
        assert all(math.isfinite(x) for x in parts)
        assert sum(parts) > 0
    with torch.no_grad():
        inputs, samples = toy.batch(model.eval(), RotatedScenes(), 2)
        found = model(inputs, samples, mode='predict')
    assert found[0].pred_instances.bboxes.shape[1] == 5


@needs_mmrotate
@pytest.mark.usefixtures('mmrotate')
class TestDistillation:
    def test_with_weight_0_is_plain_training(self):
        found = []
        for weight in (None, 0.0):
            parts = dict(ld=dict(tap='bbox_head', loss=dict(type='RotatedLDLoss', weight=0.0)))
            parts['fgd'] = dict(tap='neck', loss=dict(type='FGDLoss', weight=0.0))
            config = toy_rotated.distilled('ld-gwd', parts)
            model = toy.build(config.student if weight is None else config)
            losses = toy.losses(model, RotatedScenes(), 4)
            total(losses).backward()
            found.append((losses, {n: p.grad for n, p in model.named_parameters()}))
        (plain, gradients), (distilled, others) = found
        for name, value in plain.items():
            assert torch.equal(torch.as_tensor(total({'loss': value})),
                               torch.as_tensor(total({'loss': distilled[name]})))  # fmt: skip
        assert all(torch.equal(gradients[name], others[name]) for name in gradients)

    def test_fgd_sees_the_upright_boxes(self, monkeypatch):
        fgd = import_module('kd_dense.losses.fgd.fgd')
        seen, masks = [], fgd.box_masks
        monkeypatch.setattr(fgd, 'box_masks', lambda b, *rest: seen.append(b) or masks(b, *rest))
        toy.losses(toy.build(toy_rotated.distilled('retina', dict(fgd=FGD))), RotatedScenes(), 4)
        scenes = RotatedScenes()
        for index, boxes in enumerate(seen[-1]):
            truth = scenes[index]['data_samples'].gt_instances.bboxes
            torch.testing.assert_close(boxes, truth.convert_to('hbox').tensor)

    def test_of_pictures_without_objects(self):
        model = toy.build(toy_rotated.distilled('ld-gwd', terms('ld-gwd')))
        scenes = RotatedScenes()
        losses = toy.losses(model, [scenes[0], scenes[4]], 2)
        assert float(losses['loss_kd_ld.ld']) == 0
        assert float(losses['loss_kd_fgd.foreground']) == 0
        total(losses).backward()

    def test_under_autocast(self, without_onednn):
        # GWD and KLD of mmrotate need determinants, which there are none of in half precision.
        model = toy.build(toy_rotated.distilled('ld-retina', terms('ld-retina')))
        plain = toy.losses(model, RotatedScenes(), 4)
        with torch.autocast('cpu', torch.bfloat16):
            half = toy.losses(model, RotatedScenes(), 4)
        for name in ('loss_kd_ld.ld', 'loss_kd_ld.kd', 'loss_kd_pkd'):
            assert half[name].dtype == torch.float32
            torch.testing.assert_close(half[name], plain[name], rtol=0.2, atol=1e-2)

    def test_heads_of_other_bins_are_refused(self):
        parts = dict(ld=dict(tap='bbox_head', loss=LD['ld-gwd']))
        config = toy_rotated.distilled('ld-gwd', parts)
        config.teacher.config = toy_rotated.detector('ld-gwd', 16, angle_range=(-2.0, 2.0))
        with pytest.raises(ValueError, match=r'has bins .*-5\.0, 2\.0.*, that of the teacher'):
            toy.build(config)

    def test_a_head_without_distributions_is_refused(self):
        parts = dict(ld=dict(tap='bbox_head', loss=LD['ld-gwd']))
        with pytest.raises(ValueError, match=r'box distributions of 45 \* \(n \+ 1\) channels'):
            toy.build(toy_rotated.distilled('gwd', parts))

    @pytest.mark.parametrize('kind', ['retina', 'fcos', 'ld-gwd', 'ld-fcos'])
    def test_boxes_are_not_decoded(self, kind):
        """What compares decoded boxes takes them for upright ones."""
        parts = dict(bckd=dict(tap='bbox_head', loss=dict(type='BCKDLoss')))
        with pytest.raises(ValueError, match='rotated boxes, and this loss compares upright ones'):
            toy.build(toy_rotated.distilled(kind, parts))

    @pytest.mark.parametrize(
        ('kind', 'method', 'loss'),
        [
            ('retina', 'fgd', 'FGDLoss'),
            ('retina-rbox', 'cwd', 'CWDLoss'),
            ('fcos', 'pkd', 'PKDLoss'),
            ('fcos', 'fgd', 'FGDLoss'),
            ('ld-gwd', 'ld', 'RotatedLDLoss'),
            ('ld-fcos', 'ld', 'LDLoss'),
        ],
    )
    def test_presets(self, kind, method, loss):
        models = [toy.build(toy_rotated.detector(kind, width)) for width in (8, 16)]
        chosen = choose_preset(method, *models)
        assert [term['loss']['type'] for term in chosen.terms.values()] == [loss]

    @pytest.mark.parametrize('kind', LD)
    def test_pictures(self, kind):
        parts = dict(ld=dict(tap='bbox_head', loss=LD[kind]), fgd=FGD)
        model = toy.build(toy_rotated.distilled(kind, parts)).eval()
        view, found = see(model, RotatedScenes(), 3)
        assert view.boxes.shape == (3, 4)
        one = found['ld']
        figure = draw_term(view, one)
        assert 'angle' in texts(figure)
        drawn(figure)
        drawn(draw_term(view, found['fgd']))
        positions = sum(float(m.sum()) for m in differences(one).maps)
        assert positions == pytest.approx(one.value, rel=1e-4)


@needs_mmrotate
@pytest.mark.usefixtures('mmrotate')
class TestTargets:
    @pytest.mark.parametrize('kind', LD)
    def test_boxes_and_labels(self, kind):
        _, samples, _, maps, targets = step(kind)
        assert targets.sides == 5
        found = (torch.cat(targets.labels, 1) < 3).any(1)
        assert found.tolist() == [False, True, True, True]
        for boxes, around, sample in zip(targets.rotated, targets.boxes, samples, strict=True):
            truth = sample.gt_instances.bboxes
            assert torch.equal(boxes, truth.tensor)
            torch.testing.assert_close(around, truth.convert_to('hbox').tensor)
        for level, priors in enumerate(targets.priors):
            height, width = maps[level].shape[-2:]
            assert priors.shape[0] % (height * width) == 0
            assert priors.shape[1] == (2 if kind == 'ld-fcos' else 4)

    def test_nothing_is_assigned_again(self, monkeypatch):
        model, samples, returned, maps, _ = step('ld-gwd')
        monkeypatch.setattr(model.bbox_head, 'get_targets', None)
        head_targets.read(model.bbox_head, returned, maps, samples)


@needs_mmrotate
@pytest.mark.usefixtures('mmrotate')
class TestRetinaHead:
    def test_expects_what_lies_in_the_middle_of_even_distributions(self):
        head = toy.build(toy_rotated.detector('ld-gwd')).bbox_head
        (found,) = head.distances([torch.zeros(1, 9 * 5 * 9, 1, 1)])
        assert found.shape == (1, 45, 1, 1)
        numbers = found.view(9, 5)
        torch.testing.assert_close(numbers[:, :4], torch.zeros(9, 4), rtol=0, atol=1e-6)
        torch.testing.assert_close(numbers[:, 4], torch.full((9,), -1.5))

    def test_a_certain_bin_is_its_value(self):
        head = toy.build(toy_rotated.detector('ld-gwd')).bbox_head
        logits = torch.full((1, 9, 5, 9, 1, 1), -1e4)
        logits[0, 2, 3, 7] = logits[0, 2, 4, 8] = 1e4
        (found,) = head.distances([logits.flatten(1, 3)])
        assert found.view(9, 5)[2, 3:].tolist() == [1.5, 2.0]

    def test_half_precision_is_not_that_of_boxes(self):
        head = toy.build(toy_rotated.detector('ld-gwd')).bbox_head
        (found,) = head.distances([torch.randn(1, 405, 2, 2).bfloat16()])
        assert found.dtype == torch.float32

    def test_wants_a_coder_of_five_numbers(self):
        with pytest.raises(ValueError, match=r'bbox_coder of five .* got DeltaXYWHBBoxCoder of 4'):
            toy.build(
                toy_rotated.detector(
                    'ld-gwd', bbox_coder=dict(_delete_=True, type='mmdet.DeltaXYWHBBoxCoder')
                )
            )

    @pytest.mark.parametrize(
        ('fields', 'message'),
        [
            (dict(reg_max=0), 'reg_max >= 1, got 0'),
            (dict(delta_range=(2.0, -2.0)), r'from low to high, got \(2\.0, -2\.0\)'),
            (dict(angle_range=(1.0, 1.0)), r'from low to high, got \(1\.0, 1\.0\)'),
        ],
    )
    def test_bins_that_make_no_sense(self, fields, message):
        with pytest.raises(ValueError, match=message):
            toy.build(toy_rotated.detector('ld-gwd', **fields))


@needs_mmrotate
@pytest.mark.usefixtures('mmrotate')
class TestFCOSHead:
    def test_numbers_of_even_distributions(self):
        head = toy.build(toy_rotated.detector('ld-fcos')).bbox_head
        distances, angles = head.numbers([torch.zeros(1, 45, 2, 3)] * 5)
        assert distances[1].shape == (1, 4, 2, 3)
        assert angles[1].shape == (1, 1, 2, 3)
        assert distances[1].unique().tolist() == [4 * 16.0]
        torch.testing.assert_close(angles[1], torch.zeros_like(angles[1]), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ('fields', 'message'),
        [
            (dict(reg_max=0), 'reg_max >= 1, got 0'),
            (dict(norm_on_bbox=True), 'norm_on_bbox=False, got True'),
            (dict(angle_range=(1.0, 0.0)), 'from low to high'),
            (dict(loss_bbox=dict(type='mmdet.L1Loss')), 'for which L1Loss is no measure'),
            (
                dict(angle_coder=dict(type='CSLCoder', angle_version='le90')),
                'the angle_coder PseudoAngleCoder, got CSLCoder',
            ),
        ],
    )
    def test_fields_that_make_no_sense(self, fields, message):
        with pytest.raises(ValueError, match=message):
            toy.build(toy_rotated.detector('ld-fcos', **fields))
