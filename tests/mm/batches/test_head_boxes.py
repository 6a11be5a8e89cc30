"""Boxes are made of what a head yields as mmdet makes them."""

from __future__ import annotations

import pytest
import torch

from kd_dense.mm.batches import head_boxes
from tests.mm import toy, toy_heads
from tests.mm.toy_heads import PLAIN


def maps_of(model, levels=5):
    inputs, samples = toy.batch(model, toy.DetScenes(sizes=(64,)), 2)
    with torch.no_grad():
        outputs = model.bbox_head(model.extract_feat(inputs))
    return outputs, samples


def predicted(model, outputs, samples):
    """All boxes that mmdet's head makes of its maps, without suppression, of each image."""
    cfg = dict(nms_pre=-1, score_thr=-1.0, max_per_img=10**6)
    metas = [dict(sample.metainfo, img_shape=(10**6, 10**6)) for sample in samples]
    results = model.bbox_head.predict_by_feat(
        *outputs, batch_img_metas=metas, cfg=model.test_cfg.__class__(cfg), with_nms=False
    )
    return [r.bboxes.unique(dim=0) for r in results]


@pytest.mark.parametrize('kind', [*PLAIN, *toy_heads.HEADS])
def test_boxes_are_those_that_the_head_predicts(kind):
    config = toy_heads.plain(kind) if kind in PLAIN else toy_heads.detector(kind)
    model = toy.build(config).eval()
    with torch.no_grad():
        for parameter in model.bbox_head.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    outputs, samples = maps_of(model)
    decoded = head_boxes.decoder(model.bbox_head)(outputs[1])
    found = torch.cat(decoded.boxes, 1)
    for image, expected in enumerate(predicted(model, outputs, samples)):
        inside = found[image].clamp(0, 10**6).unique(dim=0)
        assert len(inside) >= len(expected) > 4
        apart = (expected[:, None] - inside).abs().amax(2).amin(1)
        assert float(apart.max()) < 1e-5 * (1 + float(expected.abs().max()))


@pytest.mark.parametrize('norm_on_bbox', [True, False])
def test_a_head_in_training_may_yield_another_unit(norm_on_bbox):
    model = toy.build(toy_heads.plain('fcos', norm_on_bbox=norm_on_bbox))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    found = []
    for training in (True, False):
        model.eval()
        model.bbox_head.training = training
        outputs, _ = maps_of(model)
        found.append(head_boxes.decoder(model.bbox_head)(outputs[1]))
    for one, other in zip(*(x.boxes for x in found), strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_gradients_flow_through():
    model = toy.build(toy_heads.plain('atss'))
    maps = [torch.randn(1, 4, side, side, requires_grad=True) for side in (8, 4, 2, 1, 1)]
    total = torch.cat(head_boxes.decoder(model.bbox_head)(maps).boxes, 1).sum()
    assert all(g.any() for g in torch.autograd.grad(total, maps))


def test_a_head_that_is_not_known_is_named():
    model = toy.build(toy_heads.plain('fcos'))
    model.bbox_head.bbox_coder = object()
    maps = [torch.randn(1, 4, side, side) for side in (8, 4, 2, 1, 1)]
    with pytest.raises(ValueError, match='not known how FCOSHead makes boxes'):
        head_boxes.decoder(model.bbox_head)(maps)


def test_a_model_without_a_dense_head_is_named():
    detector, segmenter = toy.build(toy.detector()), toy.build(toy.segmenter())
    with pytest.raises(ValueError, match='the teacher EncoderDecoder has no dense head'):
        head_boxes.check(detector, segmenter)
