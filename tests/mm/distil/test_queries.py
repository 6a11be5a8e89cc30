"""Students and teachers whose decoders have queries."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures import DetDataSample

from kd_dense.mm.batches import decoders
from kd_dense.mm.batches.made_up import Labels, random_batch
from kd_dense.mm.batches.queries import as_queries
from kd_dense.mm.teachers.guest import Teacher
from kd_dense.taps import Taps
from tests.mm import toy, toy_queries
from tests.mm.presets.building import untrained

BOXES = dict(type='QueryBoxLoss')
MASKS = dict(type='QueryMaskLoss')


def ours(losses):
    return {name: value for name, value in losses.items() if name.startswith('loss_kd')}


@pytest.mark.parametrize('kind', toy_queries.BOXES)
def test_every_decoder_of_boxes_learns_from_another_depth_and_number_of_queries(kind):
    model = toy.build(toy_queries.distilled(kind, BOXES))
    model.init_weights()
    seen = []
    loss = model.kd.queries.loss
    forward = loss.forward
    loss.forward = lambda student, teacher: (
        seen.append((student, teacher)) or forward(student, teacher)
    )
    assert loss.settings['sigmoid'] == (kind != 'detr')
    # The first picture has no object, and the second is of another size.
    losses = ours(toy.losses(model, toy.DetScenes()))
    assert [*losses] == [f'loss_kd_queries.{part}' for part in ('classes', 'l1', 'giou')]
    assert all(value > 0 for value in losses.values())
    [(student, teacher)] = seen
    # Those of DINO that are to be rid of noise are left out; DDQ may keep fewer of all.
    for maps, layers, queries in ((student, 2, 7), (teacher, 3, 9)):
        assert len(maps) == 2 * layers
        assert {x.shape[1] for x in maps} == {queries} or kind == 'ddq'
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.decoder.layers[0].self_attn.parameters())
    assert all(p.grad is None for p in model.kd_plan.teacher.model.parameters())


@pytest.mark.parametrize('kind', toy_queries.MASKS)
def test_every_decoder_of_masks_learns(kind):
    model = toy.build(toy_queries.distilled(kind, MASKS))
    assert not model.kd.queries.loss.settings['sigmoid']
    # The segmenters of mmseg run no further than their heads either.
    assert not model.kd_plan.teacher.by_loss
    losses = ours(model.train()(*batch(model, kind), mode='loss'))
    assert [*losses] == [f'loss_kd_queries.{part}' for part in ('classes', 'mask', 'dice')]
    assert all(value > 0 for value in losses.values())
    sum(losses.values()).backward()
    head = model.decode_head if kind.startswith('seg') else model.panoptic_head
    assert all(p.grad is not None for p in head.mask_embed.parameters())


def batch(model, kind):
    """Two pictures with labels: things with masks in mmdet, and stuff."""
    if kind.startswith('seg'):
        return toy.batch(model, toy.SegScenes(size=64))
    labels = Labels(classes=2, masks=True, label_maps=True)
    found = random_batch(model, (64, 64), labels, sample=DetDataSample)
    for sample in found['data_samples']:
        sample.gt_sem_seg.sem_seg = sample.gt_sem_seg.sem_seg + 2  # 2 is the stuff
    found = model.data_preprocessor(found, True)
    return found['inputs'], found['data_samples']


@pytest.mark.parametrize('kind', ['mask2former', 'seg-mask2former'])
def test_the_preset_takes_masks(kind):
    config = toy_queries.distilled(kind, MASKS, preset='detrdistill')
    config.pop('terms')
    model = toy.build(config)
    assert [*model.kd] == ['queries']
    assert ours(model.train()(*batch(model, kind), mode='loss'))['loss_kd_queries.dice'] > 0


def test_masks_do_not_learn_from_boxes():
    with pytest.raises(ValueError, match=r"term 'queries'.*then masks \(N, Q, H, W\), got"):
        toy.build(toy_queries.distilled('dab', MASKS))
    with pytest.raises(ValueError, match=r"term 'queries'.*then boxes \(N, Q, 4\), got"):
        toy.build(toy_queries.distilled('maskformer', BOXES))


def test_a_dino_compares_the_queries_that_it_predicts_with():
    model = toy.build(toy_queries.distilled('dino', BOXES)).train()
    model.init_weights()  # without it some are what the memory holds, at times not finite
    inputs, samples = toy.batch(model, toy.DetScenes())
    taps = model.kd_plan.student_taps
    with taps.on(model):
        type(model).__mro__[2].loss(model, inputs, samples)
        classes, boxes = taps['bbox_head']
    assert classes.shape[2] > toy_queries.QUERIES
    kept, _, _, _ = model.bbox_head.split_outputs(
        classes, boxes, dict(num_denoising_queries=classes.shape[2] - toy_queries.QUERIES)
    )
    found = classes[:, :, -model.num_queries :]
    assert torch.equal(found, kept)


def test_the_preset_takes_all_of_them():
    config = toy_queries.distilled('dab', BOXES, preset='detrdistill')
    config.pop('terms')
    model = toy.build(config)
    assert {name: term.student_tap for name, term in model.kd.items()} == {
        'queries': 'bbox_head',
        'features': 'neck',
    }
    assert model.kd.features.loss.weight == 4  # of one map, in the place of four
    losses = ours(toy.losses(model, toy.DetScenes()))
    assert len(losses) == 4
    assert all(value > 0 for value in losses.values())


@pytest.mark.parametrize('kind', ['detr', 'deformable', 'dino', 'ddq'])
def test_features_are_weighed_by_the_best_queries_of_the_teacher(kind):
    config = toy_queries.distilled(kind, dict(type='QueryFeatureLoss'), tap='neck')
    model = toy.build(config)
    model.init_weights()
    loss = model.kd.queries.loss
    seen = []
    forward = loss.forward
    loss.forward = lambda student, teacher, taught_queries: (
        seen.append(taught_queries) or forward(student, teacher, taught_queries)
    )
    value = toy.losses(model, toy.DetScenes())['loss_kd_queries']
    assert value > 0
    assert len(seen) == len(model.kd.queries.adapters)  # a level each
    found = min(100, (9 if kind != 'ddq' else seen[0].quality[0].shape[1] // 3) * 3)
    assert [x.shape for x in seen[0].states] == [(2, found, 32)] * 3
    assert [x.shape for x in seen[0].quality] == [(2, found)] * 3
    value.backward()
    assert model.neck.convs[0].conv.weight.grad.any()


def test_what_has_no_decoder_cannot_weigh_features():
    terms = dict(looks=dict(tap='neck', loss=dict(type='QueryFeatureLoss')))
    with pytest.raises(ValueError, match=r"term 'looks': .* RetinaNet has no decoder with any"):
        toy.build(toy.distilled_detector(terms=terms))


@pytest.mark.parametrize('kind', ['dab', 'dino'])
@pytest.mark.parametrize('points', ['teacher', 'random'])
def test_both_decoders_run_on_the_same_boxes(kind, points):
    loss = dict(type='QueryPointLoss', points=points, count=5)
    model = toy.build(toy_queries.distilled(kind, loss))
    model.init_weights()
    losses = ours(toy.losses(model, toy.DetScenes()))
    assert [*losses] == [f'loss_kd_queries.{part}' for part in ('classes', 'l1', 'giou')]
    assert losses['loss_kd_queries.classes'] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.decoder.layers[0].self_attn.parameters())
    assert model.backbone.conv1.weight.grad.any()
    assert all(p.grad is None for p in model.kd_plan.teacher.model.parameters())


@pytest.mark.parametrize('kind', ['dab', 'dino'])
def test_the_boxes_of_a_decoder_give_what_it_has_predicted(kind):
    # DAB-DETR's own queries are empty; those of DINO are made so here.
    model = toy.build(toy_queries.model(kind)).eval()
    model.init_weights()
    if kind == 'dino':
        model.query_embedding.weight.data.zero_()
    inputs, samples = toy.batch(model, toy.DetScenes())
    taps = Taps([*decoders.TAPS, 'bbox_head'])
    with torch.no_grad(), taps.on(model):
        model(inputs, samples, mode='tensor')
    found = decoders.read(model, model, taps, taps)
    predicted = as_queries(taps['bbox_head'])
    for run in (found.student, found.teacher):
        for x, y in zip(run(found.boxes), predicted, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_the_preset_of_points_has_both_kinds():
    config = toy_queries.distilled('dab', BOXES, preset='kddetr')
    config.pop('terms')
    model = toy.build(config)
    assert {n: t.loss.points for n, t in model.kd.items()} == {
        'teacher_points': 'teacher',
        'random_points': 'random',
    }
    assert len(ours(toy.losses(model, toy.DetScenes()))) == 6


@pytest.mark.parametrize('kind', ['detr', 'deformable', 'ddq'])
def test_a_decoder_that_begins_with_no_boxes_is_refused(kind):
    with pytest.raises(ValueError, match='cannot be given any: expected DABDETR or DINO'):
        toy.build(toy_queries.distilled(kind, dict(type='QueryPointLoss')))


def test_points_are_compared_in_mixed_precision():
    model = toy.build(toy_queries.distilled('dab', dict(type='QueryPointLoss')))
    with torch.autocast('cpu', torch.bfloat16):
        losses = ours(toy.losses(model, toy.DetScenes()))
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()


def test_other_classes_are_refused_when_the_model_is_built():
    teacher = toy_queries.model('dab')
    teacher.bbox_head.num_classes = 4
    with pytest.raises(ValueError, match=r"term 'queries'.* images and classes.*\(2, 7, 3\)"):
        toy.build(toy_queries.distilled('dab', BOXES, teacher=teacher))


def test_a_softmax_does_not_learn_from_sigmoids():
    teacher = toy_queries.model('dab')
    with pytest.raises(ValueError, match='as many images and classes'):
        toy.build(toy_queries.distilled('detr', BOXES, teacher=teacher))


@pytest.mark.parametrize('tap', ['neck', 'bbox_head[0]', 'bbox_head.fc_cls'])
def test_what_has_no_queries_is_refused_when_the_model_is_built(tap):
    with pytest.raises(ValueError, match=r"term 'queries'.*class logits \(N, Q, K\), then boxes"):
        toy.build(toy_queries.distilled('dab', BOXES, tap=tap))


def test_dense_heads_have_no_queries():
    terms = dict(queries=dict(tap='bbox_head', loss=BOXES))
    with pytest.raises(ValueError, match=r"term 'queries'.*class logits \(N, Q, K\), then boxes"):
        toy.build(toy.distilled_detector(terms=terms))
    config = toy.distilled_detector(preset='detrdistill')
    config.pop('terms')
    with pytest.raises(ValueError, match='settings for DETR and detectors derived from it'):
        toy.build(config)


def test_an_adapter_makes_no_sense():
    config = toy_queries.distilled('dab', BOXES)
    config.terms.queries.adapter = dict(type='Adapter')
    with pytest.raises(ValueError, match='QueryBoxLoss takes no adapter'):
        toy.build(config)


def test_shares_weigh_queries_too():
    config = toy_queries.distilled('dab', BOXES)
    config.terms.queries.share = 0.5
    model = toy.build(config)
    for _ in range(2):
        losses = toy.losses(model, toy.DetScenes(), count=4)
        sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert losses['kd_weight_queries'] > 0
    assert losses['kd_share_queries'] > 0


def test_a_teacher_of_untold_memory_is_the_same_each_time():
    # Some parameters of Deformable DETR have no values before init_weights().
    def values():
        return Teacher(untrained(toy_queries.model('deformable'))).model.state_dict()

    one, two = values(), values()
    assert all(torch.equal(x, two[name]) for name, x in one.items())
    assert all(x.isfinite().all() for x in one.values())
