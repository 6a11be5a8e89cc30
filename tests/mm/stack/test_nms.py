"""NMS and soft-NMS, alone, through mmcv and beside the compiled operators."""

import itertools

import numpy as np
import pytest
import torch

from kd_dense.mm.stack import nms as module
from kd_dense.mm.stack.nms import nms, softnms
from tests.mm.stack.operators import EXT, make_boxes, needs_compiled, rng

ARGS = (0.3, 0.5, 0.001, 1, 0)


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


class TestNMS:
    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('ties', [False, True])
    @pytest.mark.parametrize('n', [1, 2, 40, 300])
    def test_matches_by_hand(self, n, ties, offset):
        boxes, scores = make_boxes(n, n), make_scores(n, n, ties)
        for threshold in (0.2, 0.5, 0.8):
            kept = nms(boxes, scores, iou_threshold=threshold, offset=offset)
            assert kept.dtype == torch.int64
            assert kept.tolist() == nms_by_hand(boxes, scores, threshold, offset)

    def test_iou_at_the_threshold_is_kept(self):
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])
        scores = torch.tensor([0.9, 0.8])
        assert nms(boxes, scores, 0.5).tolist() == [0, 1]
        assert nms(boxes, scores, 0.499).tolist() == [0]
        # With offset 1 the sides are 5 x 5 and 5 x 3: IoU 0.6.
        assert nms(boxes, scores, 0.55, offset=1).tolist() == [0]
        # 0.6 as float32 is the IoU in float32, as float64 it would be below.
        assert nms(boxes, scores, 0.6, offset=1).tolist() == [0, 1]

    def test_equal_scores_keep_the_order_of_the_boxes(self):
        boxes = torch.arange(500.0)[:, None] * 100 + torch.tensor([0.0, 0, 10, 10])
        assert torch.equal(nms(boxes, torch.ones(500), 0.5), torch.arange(500))

    def test_empty(self):
        kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64

    def test_boxes_without_area_do_not_remove_each_other(self):
        boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
        assert nms(boxes, torch.tensor([0.1, 0.9]), 0.5).tolist() == [1, 0]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        boxes, scores = make_boxes(100).to(dtype), make_scores(100).to(dtype)
        expected = nms_by_hand(boxes, scores, 0.4)
        assert nms(boxes, scores, 0.4).tolist() == expected

    def test_chain_across_blocks(self):
        # Each box overlaps the next one only: every second box stays.
        n = 3 * module.BLOCK + 5
        left = torch.arange(n) * 4.0
        boxes = torch.stack([left, left * 0, left + 7, left * 0 + 7], dim=1)
        kept = nms(boxes, torch.linspace(1, 0, n), 0.2)
        assert torch.equal(kept, torch.arange(0, n, 2))

    def test_many_boxes_in_blocks(self, monkeypatch):
        sizes = []
        iou = module._iou

        def recorded(a, b, offset):
            sizes.append(a.shape[1] * b.shape[1])
            return iou(a, b, offset)

        monkeypatch.setattr(module, '_iou', recorded)
        boxes, scores = make_boxes(10_000, size=900.0), make_scores(10_000)
        kept = nms(boxes, scores, 0.3)
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
                assert torch.equal(nms(boxes, scores, **args), expected)

    @needs_compiled
    def test_ties_match_compiled_in_the_order_of_the_boxes(self):
        # mmcv sorts without `stable`, so give it the same ranking without ties.
        for seed in range(10):
            boxes, scores = make_boxes(400, seed).round(), make_scores(400, seed, ties=True)
            rank = torch.empty(400)
            rank[scores.sort(descending=True, stable=True).indices] = torch.arange(400.0, 0, -1)
            expected = EXT.nms(boxes, rank, iou_threshold=0.5, offset=0)
            assert torch.equal(nms(boxes, scores, 0.5), expected)

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r'boxes must have shape \(N, 4\), got \(3, 5\)'):
            nms(torch.zeros(3, 5), torch.zeros(3), 0.5)
        with pytest.raises(ValueError, match=r'scores must have shape \(3,\)'):
            nms(torch.zeros(3, 4), torch.zeros(2), 0.5)


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
        inds = softnms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5), *ARGS)
        assert inds.shape == (0,)
        assert inds.dtype == torch.int64

    def test_writes_only_the_chosen_rows(self):
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]])
        dets = torch.full((3, 5), -5.0)
        scores = torch.tensor([0.5, 0.4, 0.9])
        inds = softnms(boxes, scores, dets, 0.3, 0.5, 0.001, 0, 0)
        assert inds.tolist() == [2, 0]
        assert torch.equal(dets[2], torch.full((5,), -5.0))
        assert torch.equal(dets[0], torch.tensor([9.0, 9, 12, 12, 0.9]))
        assert torch.equal(scores, torch.tensor([0.5, 0.4, 0.9]))

    def test_equal_scores_in_the_order_of_mmcv(self):
        # Box 0 removes 1 and 2; the last boxes move into their places in the table.
        left = torch.tensor([0.0, 0, 0, 20, 40, 60])[:, None]
        boxes = left + torch.tensor([0.0, 0, 9, 9])
        scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
        inds = softnms(boxes, scores, torch.zeros(6, 5), 0.3, 0.5, 0.1, 0, 0)
        assert inds.tolist() == [0, 5, 4, 3]

    def test_boxes_without_area(self):
        # Their IoU is NaN. As in mmcv the box with score NaN is chosen only when it comes first.
        point, box = [5.0, 5, 5, 5], [20.0, 20, 30, 30]
        for boxes, scores in (
            ([point, box, point], [0.9, 0.5, 0.8]),
            ([point, point, box], [0.9, 0.8, 0.5]),
        ):
            dets = torch.zeros(3, 5)
            inds = softnms(torch.tensor(boxes), torch.tensor(scores), dets, 0.3, 0.5, 0.001, 2, 0)
            assert inds.tolist() == [0, 1, 2]
            assert dets[:, 4].isnan().tolist() == [s == 0.8 for s in scores]

    def test_unknown_method(self):
        with pytest.raises(ValueError, match=r'method must be 0 .*, got 3'):
            softnms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 5), 0.3, 0.5, 0.1, 3, 0)

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
            assert torch.equal(softnms(boxes, scores, ours, *args), inds)
            torch.testing.assert_close(
                ours[: len(inds)], theirs[: len(inds)], rtol=0, atol=7e-8, equal_nan=True
            )
