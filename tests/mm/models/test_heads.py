"""Heads with box distributions: mmdet's own losses and predictions on expected distances."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch.nn.parallel import DistributedDataParallel

from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.taps import Taps
from tests.mm import toy, toy_heads
from tests.mm.distil.test_distributed import added_gradient
from tests.mm.processes import in_two_processes
from tests.oracle import lane

OURS = ('atss', 'fcos', 'retina')
STOCK = {
    'atss': dict(type='ATSSHead'),
    'fcos': dict(type='FCOSHead'),
    'retina': dict(type='RetinaHead'),
}
RECORDED = {
    'LDATSSHead': 'kd_dense.DistributionATSSHead',
    'LDFCOSHead': 'kd_dense.DistributionFCOSHead',
    'LDRetinaHead': 'kd_dense.DistributionRetinaHead',
}


def recorded():
    cases = [
        pytest.param(case, id=case.cls)
        for folder in lane.folders()
        if (folder / 'ld_heads.npz').is_file()
        for case in lane.cases(folder, 'ld_heads.npz')
        if case.cls in RECORDED and 'loss_bbox/0' in case.arrays
    ]
    reason = 'compares with recordings that are not in the repository'
    return cases or [pytest.param(None, marks=pytest.mark.skip(reason))]


def build_head(config):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return ROOT_MODELS.build(ConfigDict(config))


@pytest.mark.parametrize('case', recorded())
def test_losses_are_those_of_the_authors_heads(case):
    arguments = {k: v for k, v in case.arguments.items() if k not in ('loss_ld', 'loss_kd')}
    head = build_head({**arguments, 'type': RECORDED[case.cls]})
    levels = range(sum(name.startswith('cls_scores/') for name in case.arrays))
    names = [n for n in ('cls_scores', 'bbox_preds', 'centernesses') if f'{n}/0' in case.arrays]
    maps = [[case.tensor(f'{name}/{level}') for level in levels] for name in names]
    shapes = zip(case.arrays['img_shape'], case.arrays['pad_shape'], strict=True)
    metas = [dict(img_shape=(*i.tolist(),), pad_shape=(*p.tolist(),)) for i, p in shapes]
    truth = [
        InstanceData(
            bboxes=case.tensor(f'gt_bboxes/{image}', torch.float32),
            labels=case.tensor(f'gt_labels/{image}', torch.int64),
        )
        for image in range(len(metas))
    ]

    losses = head.loss_by_feat(*maps, truth, metas)

    assert 'loss_bbox' in losses
    for name, value in losses.items():
        value = sum(value) if isinstance(value, list) else value
        expected = sum(case.tensor(f'{name}/{level}') for level in levels)
        # mmdet keeps targets in float32, and adds float32's epsilon to divisors.
        assert value.item() == pytest.approx(expected.item(), rel=1e-6), name


def giou(a, b):
    """Generalised IoU of two boxes, in plain numbers."""
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    overlap = max(width, 0) * max(height, 0)
    union = sum(areas) - overlap
    width, height = (max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1))
    return overlap / union - 1 + union / (width * height)


def test_the_loss_of_retinanet_written_out():
    model = toy.build(toy_heads.detector('retina')).train()
    head, taps = model.bbox_head, Taps(['bbox_head', 'bbox_head.get_targets'])
    torch.nn.init.normal_(head.retina_reg.weight, std=0.5)
    with taps.on(model):
        losses = model(*toy.batch(model, toy.DetScenes(), 4), mode='loss')
    (targets,), maps, total, count = (
        taps.returned('bbox_head.get_targets'),
        taps['bbox_head'],
        0,
        0,
    )
    for logits, labels, boxes, stride in zip(
        maps[5:], targets[0], targets[2], toy_heads.STRIDES, strict=True
    ):
        width = logits.shape[3]
        for image, prior in (labels < 3).nonzero().tolist():
            position, anchor = divmod(prior, head.num_base_priors)
            y, x = divmod(position, width)
            sides = logits[image, anchor * 36 : anchor * 36 + 36, y, x].view(4, 9).tolist()
            exps = [[math.exp(v) for v in side] for side in sides]
            left, top, right, bottom = (
                sum(i * e for i, e in enumerate(side)) / sum(side) for side in exps
            )
            found = x - left, y - top, x + right, y + bottom
            truth = [v / stride for v in boxes[image, prior].tolist()]
            total, count = total + 1 - giou(found, truth), count + 1
    divisor = count + 1  # mmdet counts an image without positives as one
    assert sum(losses['loss_bbox']).item() == pytest.approx(2 * total / divisor, rel=1e-4)
    assert count > 3


def bins(head, *sides):
    """Logits of one position that are certain of a bin for each side of each anchor."""
    count = head.reg_max + 1
    logits = torch.nn.functional.one_hot(torch.tensor(sides), count) * 1000.0
    return logits.reshape(1, -1, 1, 1)


def falling(*size):
    """Class logits that put positions in their order."""
    return -torch.arange(size[0] * size[1]).float().view(1, 1, *size) / 10


def predict(head, classes, boxes, *others):
    """Boxes of the first image, all of them, in the order of their scores."""
    meta = dict(img_shape=(1000, 1000), scale_factor=(1.0, 1.0))
    config = ConfigDict(nms_pre=1000, score_thr=0.0)
    maps = (classes, boxes, *others)
    (found,) = head.predict_by_feat(*maps, batch_img_metas=[meta], cfg=config, with_nms=False)
    return found


class TestBoxes:
    def test_of_fcos_lie_around_points(self):
        head = build_head(toy_heads.detector('fcos', strides=[8], num_classes=1).bbox_head)
        maps = falling(1, 2), bins(head, 1, 2, 3, 4).expand(-1, -1, 1, 2)
        boxes = predict(head, *[[m] for m in maps], [torch.zeros(1, 1, 1, 2)]).bboxes
        # The points are (4, 4) and (12, 4); predictions are cut at the border of the image.
        assert boxes.tolist() == [[0, 0, 28, 36], [4, 0, 36, 36]]

    @pytest.mark.parametrize('stride', [8, 32])
    def test_of_anchors_lie_around_their_centres(self, stride):
        generator = dict(toy_heads.ANCHORS, strides=[stride])
        config = toy_heads.detector('atss', anchor_generator=generator, num_classes=1)
        head = build_head(config.bbox_head)
        maps = falling(3, 3), bins(head, 1, 2, 3, 4).expand(-1, -1, 3, 3)
        boxes = predict(head, *[[m] for m in maps], [torch.zeros(1, 1, 3, 3)]).bboxes
        # mmdet's anchors are centred on multiples of the stride.
        assert (boxes[8] / stride).tolist() == [1, 0, 5, 6]

    def test_of_several_anchors_at_a_position(self):
        generator = dict(toy_heads.ANCHORS, strides=[8], ratios=[0.5, 2.0])
        config = toy_heads.detector('retina', anchor_generator=generator, num_classes=1)
        head = build_head(config.bbox_head)
        classes = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        boxes = predict(head, [classes], [bins(head, 0, 0, 1, 2, 0, 0, 3, 4)]).bboxes
        assert boxes.tolist() == [[0, 0, 8, 16], [0, 0, 24, 32]]

    def test_are_those_of_gfl(self):
        generator = dict(toy_heads.ANCHORS, strides=[8])
        gfl, atss = (
            build_head(toy_heads.detector(kind, anchor_generator=generator).bbox_head)
            for kind in ('gfl', 'atss')
        )
        classes, boxes = torch.randn(1, 3, 4, 5), 3 * torch.randn(1, 36, 4, 5)
        sure = torch.full((1, 1, 4, 5), 100.0)
        expected = predict(gfl, [classes], [boxes])
        found = predict(atss, [classes], [boxes], [sure])
        assert torch.allclose(found.bboxes, expected.bboxes, rtol=1e-5)
        assert torch.equal(found.labels, expected.labels)

    def test_expected_distances_lie_between_the_bins(self):
        head = build_head(toy_heads.detector('fcos', strides=[8]).bbox_head)
        even = torch.full((1, 36, 1, 1), -1000.0)
        even[:, 2::9] = even[:, 3::9] = 0  # between 2 and 3, for each side
        assert head.distances([even])[0].flatten().tolist() == [20.0] * 4

    def test_half_precision_is_left_at_once(self):
        head = build_head(toy_heads.detector('fcos', strides=[8]).bbox_head)
        (found,) = head.distances([torch.randn(1, 36, 2, 2, dtype=torch.bfloat16)])
        assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ('kind', 'change'),
    [('atss', {}), ('retina', {}), ('fcos', {}), ('fcos', dict(centerness_on_reg=True))],
)
def test_classes_and_centerness_are_mmdets(kind, change):
    head = build_head(toy_heads.detector(kind, **change).bbox_head)
    config = toy_heads.detector(kind, **change, **STOCK[kind]).bbox_head
    del config['reg_max']
    stock = build_head(config)
    weights = {k: v for k, v in head.state_dict().items() if head.REG_LAYER not in k}
    stock.load_state_dict(weights, strict=False)
    x = [torch.randn(2, 16, 8 // 2**i or 1, 8 // 2**i or 1) for i in range(5)]
    for maps in (0, 2)[: 1 if kind == 'retina' else 2]:
        for found, expected in zip(head(x)[maps], stock(x)[maps], strict=True):
            assert torch.equal(found, expected)


def toy_data():
    return dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset=toy.DetScenes(),
    )


@pytest.mark.parametrize('kind', OURS)
class TestTraining:
    def test_yields_the_same_logits_as_student_and_as_teacher(self, kind):
        model = toy.build(toy_heads.detector(kind)).eval()
        x = model.extract_feat(toy.batch(model, toy.DetScenes())[0])
        anchors = model.bbox_head.num_base_priors
        taught = model.bbox_head(x)[1]
        for training, teaching in zip(model.bbox_head.train()(x)[1], taught, strict=True):
            assert torch.equal(training, teaching)
            assert training.shape[1] == anchors * 4 * 9
            assert training.min() < 0

    def test_trains_tests_and_keeps_mmdets_names(self, kind, tmp_path):
        runner = toy.runner(toy_heads.distilled(kind), tmp_path, train_dataloader=toy_data())
        runner.train()
        plain = toy.build(toy_heads.detector(kind))
        state = {k: v for k, v in runner.model.state_dict().items() if not k.startswith('kd.')}
        plain.load_state_dict(state)
        names = {name.partition('.')[2] for name in state if name.startswith('bbox_head.')}
        head = toy_heads.detector(kind, **STOCK[kind]).bbox_head
        del head['reg_max']
        assert names == build_head(head).state_dict().keys()
        inputs, samples = toy.batch(plain, toy.DetScenes())
        found = plain.eval()(inputs, samples, mode='predict')
        assert all(sample.pred_instances.bboxes.isfinite().all() for sample in found)

    def test_can_be_pickled(self, kind):
        head = toy.build(toy_heads.detector(kind)).bbox_head
        again = pickle.loads(pickle.dumps(head))
        x = [torch.randn(1, 16, 8 // 2**i or 1, 8 // 2**i or 1) for i in range(5)]
        for before, after in zip(head(x)[1], again(x)[1], strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize('kind', toy_heads.HEADS)
def test_an_image_without_boxes_trains(kind):
    model = toy.build(toy_heads.distilled(kind))
    losses = toy.losses(model, toy.DetScenes(), count=1)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.bbox_head.parameters())
    assert losses['loss_kd_ld.main'] == losses['loss_kd_ld.kd'] == 0


@pytest.mark.parametrize('kind', toy_heads.HEADS)
def test_what_it_has_trained_teaches(kind, tmp_path):
    config, data = toy_heads.detector(kind, 16), toy_data()
    toy.runner(config, tmp_path, max_iters=2, train_dataloader=data).train()
    checkpoint = str(tmp_path / 'iter_2.pth')
    model = toy.build(
        toy_heads.distilled(kind, teacher=dict(config=config, checkpoint=checkpoint))
    )
    losses = toy.losses(model, toy.DetScenes())
    taught = model.kd_plan.teacher.model.state_dict()
    expected = read_checkpoint(checkpoint)
    assert taught.keys() == expected.keys()
    assert all(torch.equal(taught[name], expected[name]) for name in expected)
    assert losses['loss_kd_ld.main'] > 0


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        ('retina', dict(reg_max=0), 'expects reg_max >= 1, got 0'),
        ('retina', dict(reg_decoded_bbox=False), 'reg_decoded_bbox=True, got False'),
        ('atss', dict(loss_bbox=dict(type='L1Loss')), "L1Loss is no measure: say loss_bbox=dict"),
        ('fcos', dict(loss_bbox=dict(type='SmoothL1Loss')), 'SmoothL1Loss is no measure'),
        ('fcos', dict(norm_on_bbox=True), 'norm_on_bbox=False, got True'),
    ],
)  # fmt: skip
def test_what_belongs_to_four_numbers_is_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        toy.build(toy_heads.detector(kind, **change))


def test_a_stock_config_needs_another_type_and_loss_alone():
    config = toy.detector()
    config.bbox_head.update(type='kd_dense.DistributionRetinaHead', loss_bbox=toy_heads.GIOU)
    head = toy.build(config).bbox_head
    assert head.reg_max == 16
    assert head.retina_reg.out_channels == 9 * 4 * 17


def one_process(kind):
    student, teacher = toy_heads.detector(kind), toy_heads.detector(kind, 16)
    student.backbone.norm_cfg = dict(type='GN', num_groups=2)
    config = toy_heads.distilled(
        kind, student=student, teacher=dict(config=teacher, checkpoint=None)
    )
    model = toy.build(config).train()
    return model, *toy.batch(model, toy.DetScenes(sizes=(64,)), 4)


def gradients(rank):
    """What distillation adds, by kind of head, to half of the pictures."""
    found = {}
    for kind in toy_heads.HEADS:
        model, inputs, samples = one_process(kind)
        mine, ddp = slice(2 * rank, 2 * rank + 2), DistributedDataParallel(model)
        for _ in range(2):
            found[kind] = added_gradient(ddp, model, inputs[mine], samples[mine])
    return found


def test_two_processes_add_the_gradient_of_one():
    found = in_two_processes(gradients)
    for kind in toy_heads.HEADS:
        model, inputs, samples = one_process(kind)
        expected = added_gradient(model, model, inputs, samples)
        assert any(grad.abs().max() > 0 for grad in expected.values())
        for name, grad in expected.items():
            for grads in found:
                difference = (grads[kind][name] - grad).abs().max()
                assert difference <= 1e-4 * grad.abs().max() + 1e-8, (kind, name)
