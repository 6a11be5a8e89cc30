"""What stands in for mmcv's compiled operators yields on the GPU what it yields on the CPU."""

import pytest
import torch

import kd_dense.mm  # noqa: F401  (before mmcv.ops)
from tests.mm import toy
from tests.mm.stack.operators import make_boxes, rng
from tests.mm.stack.test_deform_conv import GEOMETRIES, KINDS, inputs, layer
from tests.mm.stack.test_roi_align import make_maps, make_rois
from tests.mm.stack.test_rotated import make_boxes as make_rotated

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize('count', [1, 40, 3000])
def test_nms(count, device):
    from mmcv.ops import nms, soft_nms

    boxes = make_boxes(count, size=300.0, dtype=torch.float64)
    scores = torch.rand(count, generator=rng(1), dtype=torch.float64)
    for function in (nms, soft_nms):
        expected, kept = function(boxes, scores, 0.5)
        found, there = function(boxes.to(device), scores.to(device), 0.5)
        assert there.device.type == found.device.type == device
        assert torch.equal(there.cpu(), kept)
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize('count', [1, 40, 1000])
def test_rotated_boxes(count, device):
    from mmcv.ops import box_iou_rotated, diff_iou_rotated_2d, nms_rotated

    boxes, others = make_rotated(count, 1, torch.float64), make_rotated(count, 2, torch.float64)
    scores = torch.rand(count, generator=rng(1), dtype=torch.float64)
    found = []
    for place in ('cpu', device):
        a, b = boxes.to(place), others.to(place)
        dets, kept = nms_rotated(a, scores.to(place), 0.3)
        results = (box_iou_rotated(a, b), dets, kept, diff_iou_rotated_2d(a[None], b[None]))
        assert all(x.device.type == place for x in results)
        found.append([x.cpu() for x in results])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align(mode, device):
    from mmcv.ops import roi_align

    found = []
    for place in ('cpu', device):
        maps = make_maps(dtype=torch.float64).to(place).requires_grad_()
        rois = make_rois(12, dtype=torch.float64).to(place)
        pooled = roi_align(maps, rois, (2, 3), 0.5, 2, mode, True)
        pooled.square().sum().backward()
        found.append([pooled.detach().cpu(), maps.grad.cpu()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_deformable_convolution(kind, geometry, device):
    module = layer(kind, GEOMETRIES[geometry])
    torch.manual_seed(0)
    given = [x.detach() for x in inputs(module, spread=1.5)]
    found = []
    for place in ('cpu', device):
        leaves = [x.to(place).requires_grad_() for x in given]
        result = module.to(place)(*leaves)
        result.square().sum().backward()
        found.append([result.detach().cpu(), *(x.grad.cpu() for x in leaves)])
    torch.testing.assert_close(*found)


def test_a_detector_predicts_what_it_predicts_on_the_cpu(device, exact):
    model = toy.build(toy.distilled_detector()).eval()
    model.bbox_head.test_cfg.update(score_thr=0.0, max_per_img=50)
    found = []
    for place in ('cpu', device):
        model.to(place)
        with torch.no_grad():
            predicted = model(*toy.batch(model, toy.DetScenes()), mode='predict')
        found.append([one.pred_instances.scores.cpu() for one in predicted])
    assert all(len(scores) for scores in found[0])
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-5)
