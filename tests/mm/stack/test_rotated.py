"""IoU and NMS of rotated boxes: by hand, through mmcv, and beside the compiled operators."""

import math

import pytest
import torch

from kd_dense.mm.stack import rotated
from kd_dense.mm.stack.rotated import sort_vertices
from tests.mm.stack.operators import EXT, needs_compiled, rng

# What the compiled operators of mmcv 2.3.6 say of these boxes: IoU, intersection over the first,
# and which stay at a threshold of 0.3.
BOXES = torch.tensor(
    [
        [20.0, 20.0, 30.0, 10.0, 0.3],
        [24.0, 18.0, 12.0, 28.0, -0.4],
        [22.0, 23.0, 26.0, 14.0, 2.9],
        [60.0, 50.0, 8.0, 40.0, 1.1],
        [50.0, 45.0, 30.0, 30.0, 0.7],
        [64.0, 44.0, 20.0, 9.0, -0.9],
    ]
)
SCORES = torch.tensor([0.5, 0.9, 0.6, 0.4, 0.7, 0.65])
IOU = torch.tensor(
    [
        [1.0, 0.313865, 0.4649312, 0, 0, 0],
        [0.3138649, 0.9999998, 0.321079, 0, 0, 0],
        [0.4649313, 0.3210788, 1, 0, 0, 0],
        [0, 0, 0, 1, 0.2257403, 0.2475306],
        [0, 0, 0, 0.2257403, 1, 0.1452386],
        [0, 0, 0, 0.2475306, 0.1452385, 1],
    ]
)
IOF = torch.tensor(
    [
        [1.0, 0.5064401, 0.7024546, 0, 0, 0],
        [0.4521785, 0.9999999, 0.5063396, 0, 0, 0],
        [0.5789462, 0.4673902, 1, 0, 0, 0],
        [0, 0, 0, 1, 0.7021347, 0.3100257],
        [0, 0, 0, 0.2496479, 1, 0.1521834],
        [0, 0, 0, 0.5511568, 0.7609168, 1],
    ]
)
KEPT = [1, 4, 5, 3]


def make_boxes(n, seed=0, dtype=torch.float32):
    g = rng(seed)
    boxes = torch.rand(n, 5, generator=g, dtype=dtype)
    boxes[:, :2] *= 100
    boxes[:, 2:4] = 0.5 + 40 * boxes[:, 2:4]
    boxes[:, 4] = 4 * math.pi * (boxes[:, 4] - 0.5)
    return boxes


def corners_by_hand(box):
    x, y, w, h, angle = box
    cos, sin = math.cos(angle), math.sin(angle)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    sides = [(w / 2 * a, h / 2 * b) for a, b in signs]
    return [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in sides]


def area_by_hand(polygon):
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return sum(a * d - b * c for (a, b), (c, d) in pairs) / 2


def common_by_hand(polygon, other):
    """The area that two convex polygons share: one of them, cut at each side of the other."""
    for (ax, ay), (bx, by) in zip(other, other[1:] + other[:1], strict=True):

        def depth(p, ax=ax, ay=ay, bx=bx, by=by):
            return (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax)

        left = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            s, t = depth(p), depth(q)
            if s >= 0:
                left.append(p)
            if (s >= 0) != (t >= 0):
                share = s / (s - t)
                left.append(tuple(a + share * (b - a) for a, b in zip(p, q, strict=True)))
        polygon = left
        if not polygon:
            return 0.0
    return area_by_hand(polygon)


def iou_by_hand(a, b, mode='iou'):
    a, b = corners_by_hand(a), corners_by_hand(b)
    common = common_by_hand(a, b)
    whole = area_by_hand(a)
    return common / (whole if mode == 'iof' else whole + area_by_hand(b) - common)


def nms_by_hand(boxes, scores, threshold):
    kept = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        box = boxes[i].tolist()
        if all(iou_by_hand(boxes[j].tolist(), box) < threshold for j in kept):
            kept.append(i)
    return kept


class TestIoU:
    @pytest.mark.parametrize('mode', ['iou', 'iof'])
    def test_is_the_definition(self, ops, mode):
        a, b = make_boxes(30, 1), make_boxes(20, 2)
        found = ops.box_iou_rotated(a, b, mode)
        expected = [[iou_by_hand(x, y, mode) for y in b.tolist()] for x in a.tolist()]
        assert (found > 0).float().mean() > 0.1
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
        aligned = ops.box_iou_rotated(a[:20], b, mode, aligned=True)
        torch.testing.assert_close(aligned, found[:20].diagonal(), rtol=0, atol=1e-6)

    def test_upright_boxes(self, ops):
        a, b = make_boxes(60, 1), make_boxes(40, 2)
        a[:, :4], b[:, :4], a[:, 4], b[:, 4] = a[:, :4].round(), b[:, :4].round(), 0, 0
        a[:, 2:4] += 1
        b[:, 2:4] += 1
        low, high = a[:, :2] - a[:, 2:4] / 2, a[:, :2] + a[:, 2:4] / 2
        other_low, other_high = b[:, :2] - b[:, 2:4] / 2, b[:, :2] + b[:, 2:4] / 2
        side = torch.minimum(high[:, None], other_high) - torch.maximum(low[:, None], other_low)
        common = side.clamp(min=0).prod(2)
        expected = common / (a[:, 2:4].prod(1)[:, None] + b[:, 2:4].prod(1) - common)
        torch.testing.assert_close(ops.box_iou_rotated(a, b), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_one_box_in_several_ways(self, ops, dtype):
        """Where mmcv's own finds anything from 0 to 1."""
        boxes = make_boxes(200, dtype=dtype)
        turned = boxes[:, [0, 1, 3, 2, 4]]
        turned[:, 4] += math.pi / 2
        for other in (boxes, turned, boxes + torch.tensor([0, 0, 0, 0, math.pi], dtype=dtype)):
            found = ops.box_iou_rotated(boxes, other, aligned=True)
            torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=2e-5)

    def test_boxes_side_by_side_share_nothing(self, ops):
        a = torch.tensor([[0.0, 0, 4, 2, 0.5]])
        across = torch.tensor([[math.cos(0.5), math.sin(0.5)]]) * 4
        b = torch.cat([across, a[:, 2:]], 1)
        assert ops.box_iou_rotated(a, b).item() < 1e-6
        inner = torch.tensor([[0.0, 0, 2, 1, 0.5]])  # one within the other
        assert ops.box_iou_rotated(a, inner).item() == pytest.approx(0.25)

    def test_angles_may_be_counted_the_other_way(self, ops):
        a, b = make_boxes(10, 1), make_boxes(10, 2)
        flip = torch.tensor([1.0, 1, 1, 1, -1])
        found = ops.box_iou_rotated(a, b, clockwise=False)
        assert torch.equal(found, ops.box_iou_rotated(a * flip, b * flip))

    def test_boxes_without_area_overlap_nothing(self, ops):
        flat = torch.tensor([[5.0, 5, 0, 4, 0.1], [5, 5, 0, 0, 0], [5, 5, -3, 4, 0]])
        full = torch.tensor([[5.0, 5, 8, 8, 0.2]])
        assert not ops.box_iou_rotated(flat, full).any()
        assert not ops.box_iou_rotated(full, flat, 'iof').any()
        assert ops.box_iou_rotated(full[:0], full).shape == (0, 1)
        assert ops.box_iou_rotated(full, full[:0]).shape == (1, 0)

    def test_result_does_not_depend_on_the_blocks(self, ops, monkeypatch):
        a, b = make_boxes(40, 1), make_boxes(30, 2)
        expected, sizes, overlap = ops.box_iou_rotated(a, b), [], rotated._overlap
        monkeypatch.setattr(rotated, 'MAX_PAIRS', 50)
        monkeypatch.setattr(
            rotated, '_overlap', lambda a, *rest: sizes.append(len(a)) or overlap(a, *rest)
        )
        assert torch.equal(ops.box_iou_rotated(a, b), expected)
        assert len(sizes) > 3
        assert max(sizes) <= 50

    def test_half_precision_computes_in_float32(self, ops):
        a, b = make_boxes(10, 1).half(), make_boxes(10, 2).half()
        found = ops.box_iou_rotated(a, b)
        assert torch.equal(found, ops.box_iou_rotated(a.float(), b.float()).half())

    def test_recorded(self, ops):
        found = ops.box_iou_rotated(BOXES, BOXES)
        torch.testing.assert_close(found, IOU, rtol=0, atol=2e-6)
        found = ops.box_iou_rotated(BOXES, BOXES, 'iof')
        torch.testing.assert_close(found, IOF, rtol=0, atol=2e-6)

    @needs_compiled
    @pytest.mark.parametrize('mode_flag', [0, 1])
    @pytest.mark.parametrize('seed', range(3))
    def test_matches_compiled(self, mode_flag, seed):
        a, b = make_boxes(300, seed), make_boxes(200, seed + 10)
        ours, theirs = torch.zeros(300 * 200), torch.zeros(300 * 200)
        EXT.box_iou_rotated(a, b, theirs, mode_flag=mode_flag, aligned=False)
        rotated.box_iou_rotated(a, b, ours, mode_flag, False)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)

    def test_scores_behind_boxes_are_not_read(self, ops):
        scored = torch.cat([BOXES, SCORES[:, None]], 1)  # as mmrotate's metric has them
        assert torch.equal(ops.box_iou_rotated(scored, BOXES), ops.box_iou_rotated(BOXES, BOXES))

    def test_wrong_shapes(self, ops):
        with pytest.raises(ValueError, match=r'bboxes2 must have shape \(N, 5\).*got \(3, 4\)'):
            ops.box_iou_rotated(torch.zeros(3, 5), torch.zeros(3, 4))
        with pytest.raises(ValueError, match='aligned boxes must be as many, got 3 and 2'):
            ops.box_iou_rotated(torch.zeros(3, 5), torch.zeros(2, 5), aligned=True)


class TestNMS:
    @pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5])
    @pytest.mark.parametrize('block', [256, 7])
    def test_is_the_definition(self, ops, monkeypatch, threshold, block):
        monkeypatch.setattr('kd_dense.mm.stack.nms.BLOCK', block)
        boxes, scores = make_boxes(120), torch.rand(120, generator=rng())
        dets, kept = ops.nms_rotated(boxes, scores, threshold)
        assert kept.tolist() == nms_by_hand(boxes, scores, threshold)
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])

    def test_labels_keep_out_of_each_others_way(self, ops):
        boxes, scores = make_boxes(120), torch.rand(120, generator=rng())
        labels = torch.randint(0, 3, (120,), generator=rng()).float()
        expected = []
        for label in range(3):
            members = (labels == label).nonzero()[:, 0]
            expected += members[nms_by_hand(boxes[members], scores[members], 0.3)].tolist()
        expected.sort(key=lambda i: -scores[i])
        assert ops.nms_rotated(boxes, scores, 0.3, labels=labels)[1].tolist() == expected
        cfg = dict(type='nms_rotated', iou_threshold=0.3)
        assert ops.batched_nms(boxes, scores, labels, cfg)[1].tolist() == expected

    def test_a_box_at_the_threshold_goes(self, ops):
        boxes = torch.tensor([[0.0, 0, 4, 4, 0], [0, 0, 4, 2, 0]])
        scores = torch.tensor([0.9, 0.8])
        assert ops.nms_rotated(boxes, scores, 0.5)[1].tolist() == [0]
        assert ops.nms_rotated(boxes, scores, 0.51)[1].tolist() == [0, 1]

    def test_equal_scores_in_the_order_of_the_boxes(self, ops):
        boxes = torch.tensor([[10.0, 10, 8, 4, 0.5]]).repeat(4, 1)
        assert ops.nms_rotated(boxes, torch.ones(4), 0.1)[1].tolist() == [0]

    def test_recorded(self, ops):
        assert ops.nms_rotated(BOXES, SCORES, 0.3)[1].tolist() == KEPT

    @needs_compiled
    @pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5])
    def test_matches_compiled(self, threshold):
        for n in (0, 1, 17, 700):
            boxes, scores = make_boxes(n, n), torch.rand(n, generator=rng(n))
            order = scores.sort(descending=True).indices
            args = boxes, scores, order, boxes[order], scores[:0], threshold, False
            assert torch.equal(rotated.nms_rotated(*args), EXT.nms_rotated(*args))

    def test_wrong_shapes(self, ops):
        with pytest.raises(ValueError, match=r'dets must have shape \(N, 5\).*got \(3, 4\)'):
            ops.nms_rotated(torch.zeros(3, 4), torch.zeros(3), 0.1)
        order = torch.arange(3)
        with pytest.raises(ValueError, match=r'scores must have shape \(3,\).*got \(2,\)'):
            rotated.nms_rotated(torch.zeros(3, 5), torch.zeros(2), order, order, order, 0.1, False)


class TestDifferentiableIoU:
    """mmcv's, which wants vertices in order."""

    def test_is_the_iou(self, ops):
        a, b = make_boxes(200, 1), make_boxes(200, 2)
        b[:, :2] = a[:, :2] + (b[:, :2] - 50) / 10
        found = ops.diff_iou_rotated_2d(a[None], b[None])[0]
        expected = ops.box_iou_rotated(a, b, aligned=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    def test_equal_boxes_and_far_ones(self, ops):
        a = make_boxes(50, dtype=torch.float64)  # in float32 mmcv loses corners
        for shift in (0, 1e-9, 1e-6):  # mmcv may find more than eight vertices
            b = a + shift * torch.tensor([0.3, -0.5, 1.0, -0.7, 0.9])
            same = ops.diff_iou_rotated_2d(a[None], b[None])[0]
            torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-4)
        far = a + torch.tensor([200.0, 0, 0, 0, 0])
        assert not ops.diff_iou_rotated_2d(a[None], far[None]).any()

    def test_gradients(self, ops):
        # boxes a little apart: mmcv adds 1e-8 to denominators, and sides that coincide have kinks
        a = torch.tensor([[[0.0, 0, 8, 4, 0.3], [3, 1, 5, 5, 1.0]]], dtype=torch.float64)
        b = torch.tensor([[[1.0, 0.5, 7, 5, 0.6], [2, 2, 6, 3, -0.4]]], dtype=torch.float64)
        assert torch.autograd.gradcheck(
            ops.diff_iou_rotated_2d, (a.requires_grad_(), b.requires_grad_()), atol=1e-4
        )

    def test_the_order_and_what_fills_the_rest(self):
        vertices, mask = torch.zeros(1, 2, 24, 2), torch.zeros(1, 2, 24, dtype=torch.bool)
        square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        vertices[0, 0, [0, 5, 8, 20]] = square
        mask[0, 0, [0, 5, 8, 20]] = True
        mask[0, 1, :2] = True  # two points are no area
        found = sort_vertices(vertices, mask, mask.sum(2).int())
        assert found.dtype == torch.int32
        assert found[0, 0].tolist() == [20, 5, 0, 8, 20, 9, 9, 9, 9]
        assert found[0, 1].tolist() == [8] * 9
