import importlib
import importlib.util
import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmcv')

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # mmcv and install() warn about the missing operators
    from kd_dense.mm import mmcv_ops

    mmcv_ops.install()
    importlib.import_module('mmcv.ops')

EXT = sys.modules['mmcv._ext']
HAS_COMPILED = hasattr(EXT, '__file__')
needs_compiled = pytest.mark.skipif(
    not HAS_COMPILED, reason='mmcv has no compiled operators here to compare with'
)
needs_plain = pytest.mark.skipif(
    HAS_COMPILED, reason='mmcv has its compiled operators here, nothing is replaced'
)


@pytest.fixture
def ops(monkeypatch):
    """mmcv.ops on top of the replacement, also where the compiled operators exist."""
    module = mmcv_ops._make_module()
    for name in ('nms', 'roi_align'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', module)
    return sys.modules['mmcv.ops']


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make_boxes(n, seed=0, size=60.0, dtype=torch.float32):
    g = rng(seed)
    corner = torch.rand(n, 2, generator=g, dtype=dtype) * size
    return torch.cat([corner, corner + torch.rand(n, 2, generator=g, dtype=dtype) * 30], dim=1)


def make_scores(n, seed=0, ties=False, dtype=torch.float32):
    scores = torch.rand(n, generator=rng(seed + 1000), dtype=dtype)
    return (scores * 8).round() / 8 if ties else scores


def iou_by_hand(a, b, offset):
    (ax, ay, ax2, ay2), (bx, by, bx2, by2) = a, b
    w = max(0.0, min(ax2, bx2) - max(ax, bx) + offset)
    h = max(0.0, min(ay2, by2) - max(ay, by) + offset)
    union = (
        (ax2 - ax + offset) * (ay2 - ay + offset)
        + (bx2 - bx + offset) * (by2 - by + offset)
        - w * h
    )
    return w * h / union


def nms_by_hand(boxes, scores, threshold, offset=0):
    boxes, scores = boxes.tolist(), scores.tolist()
    todo = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    for i in todo:
        if all(iou_by_hand(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft_nms_by_hand(boxes, scores, threshold, sigma, min_score, method, offset):
    boxes = boxes.tolist()
    left = dict(enumerate(scores.tolist()))
    order, values = [], []
    while left:
        best = max(left, key=left.get)
        order.append(best)
        values.append(left.pop(best))
        for i in list(left):
            iou = iou_by_hand(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                left[i] *= np.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                left[i] *= 0 if method == 'naive' else 1 - iou
            if left[i] < min_score:
                del left[i]
    return order, values


def read_by_hand(image, y, x):
    """Value of an image (C, H, W) between the pixels."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image[:, 0, 0] * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0
    for row in range(height):
        for column in range(width):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            if weight:
                value = value + weight * image[:, row, column]
    return value


def roi_align_by_hand(maps, rois, size, scale, ratio, mode, aligned):
    result = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0) for c in corners)
        h, w = y2 - y1, x2 - x1
        if not aligned:
            h, w = max(h, 1), max(w, 1)
        bin_h, bin_w = h / size[0], w / size[1]
        rows = ratio or int(np.ceil(bin_h))
        columns = ratio or int(np.ceil(bin_w))
        for ph, pw in itertools.product(range(size[0]), range(size[1])):
            values = [
                read_by_hand(
                    maps[int(image)],
                    y1 + (ph + (i + 0.5) / rows) * bin_h,
                    x1 + (pw + (j + 0.5) / columns) * bin_w,
                )
                for i in range(rows)
                for j in range(columns)
            ]
            if not values:
                result.append(maps.new_zeros(maps.shape[1]))
            elif mode == 'max':
                result.append(torch.stack(values).max(0).values)
            else:
                result.append(torch.stack(values).mean(0))
    return torch.stack(result).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def make_rois(n, seed=0, dtype=torch.float32):
    """Rois on two images of about 14 x 18 pixels, some partly or fully outside."""
    boxes = make_boxes(n, seed, 18.0, dtype) * 0.7 - 3
    boxes[0] = torch.tensor([40.0, 40.0, 60.0, 60.0])
    boxes[1] = torch.tensor([-9.3, -9.2, 30.1, 30.0])
    image = torch.randint(0, 2, (n, 1), generator=rng(seed)).to(dtype)
    return torch.cat([image, boxes], dim=1)


def make_maps(seed=0, dtype=torch.float32, channels=3):
    return torch.randn(2, channels, 7, 9, generator=rng(seed), dtype=dtype)


class RoIAlign(torch.autograd.Function):
    """The functions of a module in the place of mmcv._ext, without mmcv.ops."""

    @staticmethod
    def forward(ctx, maps, rois, size, scale, ratio, mode, aligned, ext=mmcv_ops):
        output = maps.new_full((len(rois), maps.shape[1], *size), 7)
        shape = output.shape if mode == 'max' else 0
        ctx.args = (*size, scale, ratio, int(mode == 'avg'), aligned)
        ctx.shape, ctx.ext = maps.shape, ext
        argmax = maps.new_zeros(shape), maps.new_zeros(shape)
        ext.roi_align_forward(maps, rois, output, *argmax, *ctx.args)
        ctx.save_for_backward(rois, *argmax)
        return output

    @staticmethod
    def backward(ctx, grad):
        result = grad.new_zeros(ctx.shape)
        ctx.ext.roi_align_backward(grad.contiguous(), *ctx.saved_tensors, result, *ctx.args)
        return result, None, None, None, None, None, None, None


class TestNMS:
    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('ties', [False, True])
    @pytest.mark.parametrize('n', [1, 2, 40, 300])
    def test_matches_by_hand(self, n, ties, offset):
        boxes, scores = make_boxes(n, n), make_scores(n, n, ties)
        for threshold in (0.2, 0.5, 0.8):
            kept = mmcv_ops.nms(boxes, scores, iou_threshold=threshold, offset=offset)
            assert kept.dtype == torch.int64
            assert kept.tolist() == nms_by_hand(boxes, scores, threshold, offset)

    def test_iou_at_the_threshold_is_kept(self):
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])
        scores = torch.tensor([0.9, 0.8])
        assert mmcv_ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
        assert mmcv_ops.nms(boxes, scores, 0.499).tolist() == [0]
        # With offset 1 the sides are 5 x 5 and 5 x 3: IoU 0.6.
        assert mmcv_ops.nms(boxes, scores, 0.55, offset=1).tolist() == [0]
        # 0.6 as float32 is the IoU in float32, as float64 it would be below.
        assert mmcv_ops.nms(boxes, scores, 0.6, offset=1).tolist() == [0, 1]

    def test_equal_scores_keep_the_order_of_the_boxes(self):
        boxes = torch.arange(500.0)[:, None] * 100 + torch.tensor([0.0, 0, 10, 10])
        assert torch.equal(mmcv_ops.nms(boxes, torch.ones(500), 0.5), torch.arange(500))

    def test_empty(self):
        kept = mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64

    def test_boxes_without_area_do_not_remove_each_other(self):
        boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
        assert mmcv_ops.nms(boxes, torch.tensor([0.1, 0.9]), 0.5).tolist() == [1, 0]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        boxes, scores = make_boxes(100).to(dtype), make_scores(100).to(dtype)
        expected = nms_by_hand(boxes, scores, 0.4)
        assert mmcv_ops.nms(boxes, scores, 0.4).tolist() == expected

    def test_chain_across_blocks(self):
        # Each box overlaps the next one only: every second box stays.
        n = 3 * mmcv_ops.BLOCK + 5
        left = torch.arange(n) * 4.0
        boxes = torch.stack([left, left * 0, left + 7, left * 0 + 7], dim=1)
        kept = mmcv_ops.nms(boxes, torch.linspace(1, 0, n), 0.2)
        assert torch.equal(kept, torch.arange(0, n, 2))

    def test_many_boxes_in_blocks(self, monkeypatch):
        sizes = []
        iou = mmcv_ops._iou

        def recorded(a, b, offset):
            sizes.append(a.shape[1] * b.shape[1])
            return iou(a, b, offset)

        monkeypatch.setattr(mmcv_ops, '_iou', recorded)
        boxes, scores = make_boxes(10_000, size=900.0), make_scores(10_000)
        kept = mmcv_ops.nms(boxes, scores, 0.3)
        assert max(sizes) <= 256 * 10_000
        # This is the definition: kept boxes do not overlap, and each removed box overlaps a kept
        # box of higher score.
        assert (scores[kept].diff() <= 0).all()
        a = boxes[kept]
        for part in torch.arange(10_000).split(1000):
            b = boxes[part]
            low = torch.maximum(a[:, None, :2], b[None, :, :2])
            high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
            inter = (high - low).clamp(min=0).prod(-1)
            area_a, area_b = ((t[:, 2:] - t[:, :2]).prod(-1) for t in (a, b))
            over = inter / (area_a[:, None] + area_b - inter) > 0.3
            over &= kept[:, None] != part
            is_kept = torch.isin(part, kept)
            assert not over[:, is_kept].any()
            better = scores[kept][:, None] >= scores[part]
            assert (over & better).any(0)[~is_kept].all()

    def test_max_num_and_score_threshold(self, ops):
        boxes, scores = make_boxes(80), make_scores(80)
        expected = [i for i in nms_by_hand(boxes, scores, 0.3) if scores[i] > 0.4]
        dets, inds = ops.nms(boxes, scores, 0.3, score_threshold=0.4)
        assert inds.tolist() == expected
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[expected])
        expected = nms_by_hand(boxes, scores, 0.3)[:4]
        assert ops.nms(boxes, scores, 0.3, max_num=4)[1].tolist() == expected

    def test_numpy(self, ops):
        boxes, scores = make_boxes(30), make_scores(30)
        dets, inds = ops.nms(boxes.numpy(), scores.numpy(), 0.3)
        assert isinstance(dets, np.ndarray)
        assert inds.tolist() == nms_by_hand(boxes, scores, 0.3)

    @pytest.mark.parametrize('split_thr', [10_000, 10])
    def test_batched_by_class(self, ops, split_thr):
        boxes, scores = make_boxes(120), make_scores(120)
        classes = torch.randint(0, 3, (120,), generator=rng())
        expected = []
        for c in range(3):
            members = (classes == c).nonzero()[:, 0]
            expected += members[nms_by_hand(boxes[members], scores[members], 0.3)].tolist()
        expected.sort(key=lambda i: -scores[i])
        cfg = {'type': 'nms', 'iou_threshold': 0.3, 'split_thr': split_thr}
        dets, keep = ops.batched_nms(boxes, scores, classes, cfg)
        assert keep.tolist() == expected
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[expected])
        cfg['max_num'] = 5
        assert ops.batched_nms(boxes, scores, classes, cfg)[1].tolist() == expected[:5]

    def test_batched_class_agnostic(self, ops):
        boxes, scores = make_boxes(120), make_scores(120)
        classes = torch.randint(0, 3, (120,), generator=rng())
        cfg = {'type': 'nms', 'iou_threshold': 0.3}
        keep = ops.batched_nms(boxes, scores, classes, cfg, class_agnostic=True)[1]
        assert keep.tolist() == nms_by_hand(boxes, scores, 0.3)

    @needs_compiled
    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('integer', [False, True])
    def test_matches_compiled(self, offset, integer):
        for seed, n in enumerate([0, 1, 17, 100, 700, 1500]):
            boxes, scores = make_boxes(n, seed), make_scores(n, seed)
            if integer:
                boxes = boxes.round()
            for threshold in (0.1, 0.3, 0.5, 0.7):
                args = {'iou_threshold': threshold, 'offset': offset}
                expected = EXT.nms(boxes, scores, **args)
                assert torch.equal(mmcv_ops.nms(boxes, scores, **args), expected)

    @needs_compiled
    def test_ties_match_compiled_in_the_order_of_the_boxes(self):
        # mmcv sorts without `stable`, so give it the same ranking without ties.
        for seed in range(10):
            boxes, scores = make_boxes(400, seed).round(), make_scores(400, seed, ties=True)
            rank = torch.empty(400)
            rank[scores.sort(descending=True, stable=True).indices] = torch.arange(400.0, 0, -1)
            expected = EXT.nms(boxes, rank, iou_threshold=0.5, offset=0)
            assert torch.equal(mmcv_ops.nms(boxes, scores, 0.5), expected)

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r'boxes must have shape \(N, 4\), got \(3, 5\)'):
            mmcv_ops.nms(torch.zeros(3, 5), torch.zeros(3), 0.5)
        with pytest.raises(ValueError, match=r'scores must have shape \(3,\)'):
            mmcv_ops.nms(torch.zeros(3, 4), torch.zeros(2), 0.5)


class TestSoftNMS:
    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
    def test_matches_by_hand(self, ops, method, offset):
        for seed, min_score in itertools.product(range(4), [0.001, 0.2]):
            boxes, scores = make_boxes(60, seed), make_scores(60, seed)
            args = (0.3, 0.4, min_score, method, offset)
            order, values = soft_nms_by_hand(boxes, scores, *args)
            dets, inds = ops.soft_nms(boxes, scores, *args)
            assert inds.tolist() == order
            assert torch.equal(dets[:, :4], boxes[order])
            assert dets[:, 4].tolist() == pytest.approx(values, rel=1e-5)

    def test_through_batched_nms(self, ops):
        boxes, scores = make_boxes(40), make_scores(40)
        classes = torch.arange(40) % 2
        cfg = {'type': 'soft_nms', 'iou_threshold': 0.3, 'method': 'linear', 'min_score': 0.05}
        found = dict(zip(*reversed(ops.batched_nms(boxes, scores, classes, cfg)), strict=True))
        expected = {}
        for c in range(2):
            order, values = soft_nms_by_hand(
                boxes[c::2], scores[c::2], 0.3, 0.5, 0.05, 'linear', 0
            )
            expected |= {2 * i + c: v for i, v in zip(order, values, strict=True)}
        found = {int(i): float(det[4]) for i, det in found.items()}
        assert found == pytest.approx(expected, rel=1e-4)

    def test_empty(self):
        inds = mmcv_ops.softnms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5), *ARGS)
        assert inds.shape == (0,)
        assert inds.dtype == torch.int64

    def test_writes_only_the_chosen_rows(self):
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]])
        dets = torch.full((3, 5), -5.0)
        scores = torch.tensor([0.5, 0.4, 0.9])
        inds = mmcv_ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.001, 0, 0)
        assert inds.tolist() == [2, 0]
        assert torch.equal(dets[2], torch.full((5,), -5.0))
        assert torch.equal(dets[0], torch.tensor([9.0, 9, 12, 12, 0.9]))
        assert torch.equal(scores, torch.tensor([0.5, 0.4, 0.9]))

    def test_equal_scores_in_the_order_of_mmcv(self):
        # Box 0 removes 1 and 2; the last boxes move into their places in the table.
        left = torch.tensor([0.0, 0, 0, 20, 40, 60])[:, None]
        boxes = left + torch.tensor([0.0, 0, 9, 9])
        scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
        inds = mmcv_ops.softnms(boxes, scores, torch.zeros(6, 5), 0.3, 0.5, 0.1, 0, 0)
        assert inds.tolist() == [0, 5, 4, 3]

    def test_boxes_without_area(self):
        # Their IoU is NaN. As in mmcv the box with score NaN is chosen only when it comes first.
        point, box = [5.0, 5, 5, 5], [20.0, 20, 30, 30]
        for boxes, scores in (
            ([point, box, point], [0.9, 0.5, 0.8]),
            ([point, point, box], [0.9, 0.8, 0.5]),
        ):
            dets = torch.zeros(3, 5)
            inds = mmcv_ops.softnms(
                torch.tensor(boxes), torch.tensor(scores), dets, 0.3, 0.5, 0.001, 2, 0
            )
            assert inds.tolist() == [0, 1, 2]
            assert dets[:, 4].isnan().tolist() == [s == 0.8 for s in scores]

    def test_unknown_method(self):
        with pytest.raises(ValueError, match=r'method must be 0 .*, got 3'):
            mmcv_ops.softnms(
                torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 5), 0.3, 0.5, 0.1, 3, 0
            )

    @needs_compiled
    @pytest.mark.parametrize('method', [0, 1, 2])
    @pytest.mark.parametrize('integer', [False, True])
    def test_matches_compiled(self, method, integer):
        # Also with ties: there the order depends on every swap in the table.
        for seed, offset, min_score in itertools.product(range(6), [0, 1], [0.001, 0.2]):
            n = 10 + 30 * seed
            boxes, scores = make_boxes(n, seed), make_scores(n, seed, ties=integer)
            if integer:
                boxes = boxes.round()
            ours, theirs = torch.zeros(n, 5), torch.zeros(n, 5)
            args = (0.3, 0.5, min_score, method, offset)
            inds = EXT.softnms(boxes, scores, theirs, *args)
            assert torch.equal(mmcv_ops.softnms(boxes, scores, ours, *args), inds)
            torch.testing.assert_close(
                ours[: len(inds)], theirs[: len(inds)], rtol=0, atol=7e-8, equal_nan=True
            )


ARGS = (0.3, 0.5, 0.001, 1, 0)
CASES = list(
    itertools.product(['avg', 'max'], [True, False], [0, 1, 2], [(1.0, (2, 3)), (0.25, (3, 2))])
)


class TestRoIAlign:
    @pytest.mark.parametrize(('mode', 'aligned', 'ratio', 'scale_size'), CASES)
    def test_matches_by_hand(self, mode, aligned, ratio, scale_size):
        scale, size = scale_size
        rois = make_rois(12, dtype=torch.float64)
        rois[:, 1:] /= scale
        args = (rois, size, scale, ratio, mode, aligned)
        a = make_maps(dtype=torch.float64).requires_grad_()
        b = a.detach().clone().requires_grad_()
        ours, expected = RoIAlign.apply(a, *args), roi_align_by_hand(b, *args)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        grad = torch.randn(ours.shape, generator=rng(5), dtype=torch.float64)
        ours.backward(grad)
        expected.backward(grad)
        assert b.grad.abs().max() > 0.1
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)

    @needs_compiled
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize(('mode', 'aligned', 'ratio', 'scale_size'), CASES)
    def test_matches_compiled(self, mode, aligned, ratio, scale_size, dtype):
        scale, size = scale_size
        rois = make_rois(200, dtype=dtype)
        rois[:, 1:] /= scale
        args = (rois, size, scale, ratio, mode, aligned)
        a = make_maps(dtype=dtype).requires_grad_()
        b = a.detach().clone().requires_grad_()
        ours, theirs = RoIAlign.apply(a, *args), RoIAlign.apply(b, *args, EXT)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
        grad = torch.randn(ours.shape, generator=rng(5), dtype=dtype)
        ours.backward(grad)
        theirs.backward(grad)
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=tolerance)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    @pytest.mark.parametrize('ratio', [0, 2])
    def test_gradcheck(self, ops, mode, ratio):
        maps = make_maps(dtype=torch.float64, channels=2).requires_grad_()
        rois = make_rois(5, dtype=torch.float64)
        for function in (ops.roi_align, RoIAlign.apply):
            assert torch.autograd.gradcheck(
                lambda x, f=function: f(x, rois, (2, 2), 0.5, ratio, mode, True), (maps,)
            )

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_through_the_layer_of_mmcv(self, ops, mode):
        maps, rois = make_maps(), make_rois(6)
        layer = ops.RoIAlign((2, 3), 0.5, 2, mode, True)
        expected = roi_align_by_hand(maps.double(), rois.double(), (2, 3), 0.5, 2, mode, True)
        torch.testing.assert_close(layer(maps, rois).double(), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_no_rois(self, ops, mode):
        maps = make_maps().requires_grad_()
        output = ops.roi_align(maps, torch.zeros(0, 5), (2, 3), 1.0, 0, mode, True)
        assert output.shape == (0, 3, 2, 3)
        output.sum().backward()
        assert torch.equal(maps.grad, torch.zeros_like(maps))

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_roi_without_area(self, mode):
        maps = make_maps().requires_grad_()
        rois = torch.tensor([[0.0, 2, 2, 2, 2], [1, 1, 1, 5, 5]])
        output = RoIAlign.apply(maps, rois, (2, 2), 1.0, 0, mode, True)
        assert torch.equal(output[0], torch.zeros(3, 2, 2))
        output.sum().backward()
        assert torch.equal(maps.grad[0], torch.zeros(3, 7, 9))
        assert maps.grad[1].abs().sum() > 0

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_point_one_pixel_outside_counts_as_the_border(self, mode):
        # The outermost point that counts; max pooling in mmcv gives no gradient there.
        maps = make_maps().requires_grad_()
        rois = torch.tensor([[0.0, -1.5, -1.5, 0.5, 0.5]])
        output = RoIAlign.apply(maps, rois, (1, 1), 1.0, 1, mode, True)
        output.sum().backward()
        assert torch.equal(output[0, :, 0, 0], maps[0, :, 0, 0])
        expected = torch.zeros_like(maps)
        expected[0, :, 0, 0] = 1
        assert torch.equal(maps.grad, expected)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_roi_outside_of_the_map(self, mode):
        maps = make_maps().requires_grad_()
        rois = torch.tensor([[0.0, 90, 90, 99, 99]])
        output = RoIAlign.apply(maps, rois, (2, 2), 1.0, 2, mode, True)
        output.sum().backward()
        assert torch.equal(output, torch.zeros(1, 3, 2, 2))
        assert torch.equal(maps.grad, torch.zeros_like(maps))

    @pytest.mark.parametrize('ratio', [0, 1, 2])
    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_result_does_not_depend_on_the_chunks(self, monkeypatch, mode, ratio):
        rois = make_rois(12, dtype=torch.float64)

        def both():
            maps = make_maps(dtype=torch.float64).requires_grad_()
            output = RoIAlign.apply(maps, rois, (2, 3), 1.0, ratio, mode, True)
            (output * torch.arange(output.numel()).view_as(output)).sum().backward()
            return output, maps.grad

        expected = both()
        seen = []
        neighbours = mmcv_ops._neighbours

        def recorded(y, x, height, width):
            seen.append(len(y))
            return neighbours(y, x, height, width)

        monkeypatch.setattr(mmcv_ops, '_neighbours', recorded)
        monkeypatch.setattr(mmcv_ops, 'MAX_POINTS', 20)
        monkeypatch.setattr(mmcv_ops, 'MAX_VALUES', 60)
        for a, b in zip(both(), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert len(seen) > 2
        # One bin may hold more than the limit: 20 x 14 points in the largest roi.
        assert max(seen) <= (280 if ratio == 0 else 20)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_half_precision_computes_in_float32(self, mode, dtype):
        maps, rois = make_maps().to(dtype).requires_grad_(), make_rois(12)
        full = maps.detach().float().requires_grad_()
        args = (rois, (2, 2), 1.0, 2, mode, True)
        output, expected = RoIAlign.apply(maps, *args), RoIAlign.apply(full, *args)
        assert output.dtype == dtype
        assert torch.equal(output, expected.to(dtype))
        if mode == 'avg':
            grad = torch.ones_like(output)
            output.backward(grad)
            expected.backward(grad.float())
            assert torch.equal(maps.grad, full.grad.to(dtype))

    def test_backward_adds_to_the_gradient(self):
        rois, grad = make_rois(4), torch.ones(4, 3, 2, 2)
        first, empty = torch.zeros(2, 3, 7, 9), torch.zeros(0)
        args = (2, 2, 1.0, 2, 1, True)
        mmcv_ops.roi_align_backward(grad, rois, empty, empty, first, *args)
        second = torch.ones_like(first)
        mmcv_ops.roi_align_backward(grad, rois, empty, empty, second, *args)
        torch.testing.assert_close(second, first + 1)

    def test_first_of_equal_values_gets_the_gradient(self):
        maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
        rois = torch.tensor([[0.0, 0, 0, 4, 4]])
        RoIAlign.apply(maps, rois, (1, 1), 1.0, 4, 'max', True).sum().backward()
        expected = torch.zeros(4, 4)
        expected[0, 0] = 1
        assert torch.equal(maps.grad[0, 0], expected)

    def test_wrong_arguments(self):
        maps = make_maps()

        def run(roi, mode='avg'):
            RoIAlign.apply(maps, torch.tensor([roi]), (2, 2), 1.0, 2, mode, True)

        with pytest.raises(ValueError, match=r'rois must have shape \(N, 5\).*got \(1, 4\)'):
            run([0.0, 1, 2, 3])
        with pytest.raises(ValueError, match='x2 >= x1 and y2 >= y1'):
            run([0.0, 3, 3, 2, 4])
        with pytest.raises(ValueError, match='x2 >= x1 and y2 >= y1'):
            run([0.0, float('nan'), 3, 2, 4])
        with pytest.raises(ValueError, match='outside of the batch of 2: 2 to 2'):
            run([2.0, 1, 1, 2, 2])
        with pytest.raises(ValueError, match='outside of the batch of 2: -1 to -1'):
            run([-1.0, 1, 1, 2, 2])
        with pytest.raises(ValueError, match=r'pool_mode must be 0 \(max\) or 1 \(avg\), got 2'):
            mmcv_ops.roi_align_forward(maps, make_rois(4), *[maps] * 3, 2, 2, 1.0, 2, 2, True)


def run_python(code, *paths):
    """Runs code in a fresh process; `mmcv_ops` is loaded without what its package does."""
    load = (
        'import sys, types, warnings\n'
        'warnings.simplefilter("always")\n'
        f'sys.path[:0] = {[str(p) for p in paths]!r}\n'
        'package = sys.modules["kd_dense.mm"] = types.ModuleType("kd_dense.mm")\n'
        f'package.__path__ = [{str(Path(mmcv_ops.__file__).parent)!r}]\n'
        'from kd_dense.mm import mmcv_ops\n'
        'def install():\n'
        '    with warnings.catch_warnings(record=True) as caught:\n'
        '        warnings.simplefilter("always")\n'
        '        return mmcv_ops.install(), [str(w.message) for w in caught]\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', load + code],
        capture_output=True,
        text=True,
        cwd=Path(mmcv_ops.__file__).parent,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestModule:
    def test_other_operators_explain_themselves(self):
        module = mmcv_ops._make_module()
        assert hasattr(module, 'ms_deform_attn_forward')
        with pytest.raises(
            NotImplementedError,
            match=r"'ms_deform_attn_forward' is not available.*without its compiled operators.*"
            r'only NMS, soft-NMS, RoIAlign and deformable convolutions.*mim install mmcv',
        ):
            module.ms_deform_attn_forward(1, 2, im2col_step=3)
        assert module.ms_deform_attn_forward is module.ms_deform_attn_forward

    def test_private_names_are_missing(self):
        module = mmcv_ops._make_module()
        for name in ('__file__', '__path__', '__wrapped__', '_private'):
            with pytest.raises(AttributeError, match=f"'mmcv._ext' has no attribute '{name}'"):
                getattr(module, name)

    def test_compiler_versions(self):
        module = mmcv_ops._make_module()
        assert module.get_compiler_version() == 'n/a'
        assert module.get_compiling_cuda_version() == 'n/a'

    def test_spec_and_repr(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmcv._ext', mmcv_ops._make_module())
        assert importlib.util.find_spec('mmcv._ext').name == 'mmcv._ext'
        assert 'mmcv._ext' in repr(sys.modules['mmcv._ext'])

    @needs_plain
    def test_operator_of_mmcv_that_is_not_replaced(self):
        with pytest.raises(NotImplementedError, match="'sigmoid_focal_loss_forward'"):
            sys.modules['mmcv.ops'].sigmoid_focal_loss(
                torch.zeros(2, 3), torch.zeros(2).long(), 2.0, 0.25, None, 'mean'
            )


class TestInstall:
    @needs_compiled
    def test_leaves_the_compiled_operators(self, recwarn):
        assert mmcv_ops.install() is False
        assert sys.modules['mmcv._ext'] is EXT
        assert EXT.nms is not mmcv_ops.nms
        assert len(recwarn) == 0

    @needs_plain
    def test_is_in_place(self, recwarn):
        assert mmcv_ops.install() is True
        assert sys.modules['mmcv._ext'] is EXT
        assert len(recwarn) == 0

    def test_nothing_to_do_without_mmcv(self, monkeypatch):
        monkeypatch.delitem(sys.modules, 'mmcv._ext')
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
        assert mmcv_ops.install() is False
        assert 'mmcv._ext' not in sys.modules

    def test_leaves_a_compiled_module_that_is_not_imported_yet(self, tmp_path):
        (tmp_path / 'mmcv').mkdir()
        (tmp_path / 'mmcv' / '__init__.py').write_text('')
        (tmp_path / 'mmcv' / '_ext.py').write_text('compiled = True')
        run_python(
            'assert install() == (False, [])\n'
            'assert "mmcv" not in sys.modules and "mmcv._ext" not in sys.modules\n'
            'import mmcv._ext\n'
            'assert mmcv._ext.compiled is True\n'
            'assert install() == (False, [])\n'
            'assert mmcv._ext.compiled is True\n',
            tmp_path,
        )

    @pytest.mark.parametrize('first', ['', 'import mmcv\n'])
    def test_replaces_a_missing_module_and_warns_once(self, tmp_path, first):
        (tmp_path / 'mmcv').mkdir()
        (tmp_path / 'mmcv' / '__init__.py').write_text('')
        run_python(
            f'{first}'
            'imported = "mmcv" in sys.modules\n'
            'done, messages = install()\n'
            'assert done is True and len(messages) == 1, messages\n'
            'assert "mmcv has no compiled operators" in messages[0]\n'
            'assert ("mmcv" in sys.modules) == imported\n'
            'module = sys.modules["mmcv._ext"]\n'
            'assert install() == (True, [])\n'
            'assert sys.modules["mmcv._ext"] is module\n'
            'import mmcv._ext\n'
            'from mmcv._ext import nms\n'
            'assert nms is mmcv_ops.nms\n'
            'assert not imported or mmcv._ext is module\n',
            tmp_path,
        )

    @needs_plain
    @pytest.mark.parametrize(
        'first',
        [
            '',
            # A program may have imported mmcv and tried its operators before.
            'import mmcv, mmcv.cnn\n'
            'try:\n'
            '    import mmcv.ops\n'
            '    raise SystemExit("mmcv.ops works without operators")\n'
            'except ModuleNotFoundError:\n'
            '    pass\n',
        ],
    )
    def test_mmdet_and_mmseg_can_be_imported(self, first):
        pytest.importorskip('mmdet')
        pytest.importorskip('mmseg')
        out = run_python(
            f'{first}'
            'assert install()[0] is True\n'
            'import mmdet.models, mmseg.models\n'
            'from mmcv.ops import batched_nms\n'
            'from mmcv.utils import collect_env\n'
            'print(collect_env()["MMCV Compiler"])\n'
        )
        assert out.split()[-1] == 'n/a'
