import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kd_dense.functional import divergence
from kd_dense.losses.ld.regions import (
    box_iou,
    box_overlaps,
    fine_grained_region,
    inside_region,
    non_maximum_suppression,
    vlr_region,
)
from tests.losses.ld_head import BOXES, make_targets


def slow_overlaps(a, b, diou='paper'):
    """IoU, DIoU and distance of the centres of two boxes given as lists."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    inter = width * height
    iou = inter / (area_a + area_b - inter)
    distance = math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    overlap = inter / area_a if diou == 'code' else iou
    return iou, overlap - distance**2 / diagonal**2, distance


def slow_vlr(levels, valid, boxes, topk=9, diou='paper'):
    """The region of one image, prior by prior."""
    anchors = [a for level in levels for a in level.tolist()]
    valid = [v for level in valid for v in level.tolist()]
    region = [0.0] * len(anchors)
    for box in boxes.tolist():
        candidates, start = [], 0
        for level in levels:
            found = []
            for index in range(start, start + len(level)):
                if valid[index]:
                    iou, _, distance = slow_overlaps(anchors[index], box)
                    found.append((distance, iou))
            candidates += [iou for _, iou in sorted(found)[:topk]]
            start += len(level)
        mean = sum(candidates) / len(candidates)
        variance = sum((c - mean) ** 2 for c in candidates) / (len(candidates) - 1)
        threshold = mean + math.sqrt(variance)
        for index, anchor in enumerate(anchors):
            iou, closeness, _ = slow_overlaps(anchor, box, diou)
            if valid[index] and 0.25 * threshold <= closeness < threshold:
                region[index] = max(region[index], iou)
    return region


def slow_inside(levels, boxes):
    found = []
    for prior in [p for level in levels for p in level.tolist()]:
        x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
        found.append(any(b[0] < x < b[2] and b[1] < y < b[3] for b in boxes.tolist()))
    return found


def make_boxes(count):
    """For three images, some of their boxes partly outside."""
    generator = torch.Generator().manual_seed(2)
    corners = 60 * torch.rand(3, count, 2, generator=generator, dtype=torch.float64) - 8
    sizes = 3 + 30 * torch.rand(3, count, 2, generator=generator, dtype=torch.float64)
    return list(torch.cat([corners, corners + sizes], -1))


def count_operators(call):
    class Count(TorchDispatchMode):
        operators = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.operators += 1
            return func(*args, **(kwargs or {}))

    with Count() as count:
        call()
    return count.operators


class TestRegion:
    targets = make_targets()
    valid = torch.cat(targets.valid, 1)

    @pytest.mark.parametrize('diou', ['paper', 'code'])
    @pytest.mark.parametrize('topk', [1, 4, 9, 100])
    def test_matches_the_rule_prior_by_prior(self, diou, topk):
        found = vlr_region(self.targets.priors, self.valid, BOXES, topk, diou)
        for n, boxes in enumerate(BOXES):
            valid = [v[n] for v in self.targets.valid]
            expected = slow_vlr(self.targets.priors, valid, boxes, topk, diou)
            assert found[n].tolist() == pytest.approx(expected, rel=1e-12)
        assert (found[0] > 0).any()

    def test_the_two_rules_select_different_anchors(self):
        paper, code = (
            vlr_region(self.targets.priors, self.valid, BOXES, 9, diou) > 0
            for diou in ('paper', 'code')
        )
        assert (paper != code).any()

    def test_an_image_does_not_depend_on_the_others(self):
        whole = vlr_region(self.targets.priors, self.valid, BOXES)
        for n, boxes in enumerate(BOXES):
            alone = vlr_region(self.targets.priors, self.valid[n : n + 1], [boxes])
            assert torch.equal(alone[0], whole[n])

    def test_the_order_of_boxes_does_not_matter(self):
        flipped = [b.flip(0) for b in BOXES]
        assert torch.equal(
            vlr_region(self.targets.priors, self.valid, BOXES),
            vlr_region(self.targets.priors, self.valid, flipped),
        )

    def test_moves_and_scales_with_the_picture(self):
        anchors, boxes = self.targets.priors, BOXES
        there = [a * 2.5 + 11 for a in anchors], [b * 2.5 + 11 for b in boxes]
        torch.testing.assert_close(
            vlr_region(there[0], self.valid, there[1]), vlr_region(anchors, self.valid, boxes)
        )

    def test_leaves_out_the_best_anchors_and_the_far_ones(self):
        everywhere = torch.ones(1, sum(self.targets.sizes), dtype=torch.bool)
        iou, diou, _ = box_overlaps(torch.cat(self.targets.priors), BOXES[2][None])
        region = vlr_region(self.targets.priors, everywhere, [BOXES[2]])[0]
        best = diou[0, 0].argmax()
        assert region[best] == 0
        assert (region[diou[0, 0] <= 0] == 0).all()
        assert ((region == 0) | (region == iou[0, 0])).all()

    @pytest.mark.parametrize('rule', [vlr_region, fine_grained_region, inside_region])
    def test_priors_in_the_padding_are_as_if_they_were_not_there(self, rule):
        kept = [v[2] for v in self.targets.valid]
        fewer = [a[k] for a, k in zip(self.targets.priors, kept, strict=True)]
        near = [torch.tensor([[28.3, 4.1, 63.0, 36.9]], dtype=torch.float64)]
        expected = rule(fewer, torch.ones(1, sum(map(len, fewer)), dtype=torch.bool), near)
        found = rule(self.targets.priors, self.valid[2:], near)
        everywhere = rule(self.targets.priors, torch.ones_like(self.valid[2:]), near)
        assert everywhere[:, ~torch.cat(kept)].any()
        assert torch.equal(found[:, torch.cat(kept)], expected)
        assert not found[:, ~torch.cat(kept)].any()

    @pytest.mark.parametrize('rule', [vlr_region, fine_grained_region, inside_region])
    def test_boxes_outside_the_picture_or_without_area_are_harmless(self, rule):
        odd = torch.tensor([[-90.0, -90, -60, -60], [20, 20, 20, 20]], dtype=torch.float64)
        alone = rule(self.targets.priors, self.valid[:1], [odd])
        both = rule(self.targets.priors, self.valid[:1], [torch.cat([BOXES[0], odd])])
        assert both.isfinite().all()
        without = rule(self.targets.priors, self.valid[:1], [BOXES[0]])
        assert torch.equal(both, torch.maximum(without, alone))
        assert not alone.any()

    @pytest.mark.parametrize('rule', [vlr_region, fine_grained_region, inside_region])
    def test_boxes_may_be_looked_at_in_any_number_at_a_time(self, rule, monkeypatch):
        many = make_boxes(25)
        whole = rule(self.targets.priors, self.valid, many)
        assert whole.any()
        counted = []
        for size in (1, 3 * 54 * 7):  # one box of each image, or seven
            monkeypatch.setattr(divergence, 'CPU_BLOCK_BYTES', 8 * size)
            counted.append(count_operators(lambda: rule(self.targets.priors, self.valid, many)))
            assert torch.equal(rule(self.targets.priors, self.valid, many), whole)
        assert counted[0] > counted[1]

    @pytest.mark.parametrize('diou', ['paper', 'code'])
    def test_overlaps_match_those_pair_by_pair(self, diou):
        anchors = torch.cat(self.targets.priors)
        boxes = torch.stack(make_boxes(25))
        found = torch.stack(box_overlaps(anchors, boxes, diou))
        assert torch.equal(found[0], box_iou(anchors, boxes))
        for n, g, a in itertools.product(range(3), range(0, 25, 4), range(54)):
            iou, closeness, distance = slow_overlaps(
                anchors[a].tolist(), boxes[n, g].tolist(), diou
            )
            expected = iou, closeness, distance**2
            assert found[:, n, g, a].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)

    def test_fine_grained_matches_the_rule_prior_by_prior(self):
        found = fine_grained_region(self.targets.priors, self.valid, BOXES)
        anchors = torch.cat(self.targets.priors).tolist()
        for n, boxes in enumerate(BOXES):
            expected = [False] * len(anchors)
            for box in boxes.tolist():
                ious = [slow_overlaps(a, box)[0] for a in anchors]
                ious = [i * v for i, v in zip(ious, self.valid[n].tolist(), strict=True)]
                expected = [e or i > 0.5 * max(ious) for e, i in zip(expected, ious, strict=True)]
            assert found[n].tolist() == expected

    @pytest.mark.parametrize('points', [False, True])
    def test_inside_matches_the_rule_prior_by_prior(self, points):
        priors = [(p[:, :2] + p[:, 2:]) / 2 if points else p for p in self.targets.priors]
        found = inside_region(priors, self.valid, BOXES)
        for n, boxes in enumerate(BOXES):
            inside = torch.tensor(slow_inside(self.targets.priors, boxes), dtype=torch.bool)
            assert torch.equal(found[n], inside & self.valid[n])

    @pytest.mark.parametrize('rule', [vlr_region, fine_grained_region])
    def test_points_have_no_overlaps(self, rule):
        with pytest.raises(ValueError, match=r"anchor boxes \(A, 4\), got .* region 'inside'"):
            rule([torch.zeros(5, 2)], torch.ones(1, 5, dtype=torch.bool), [torch.zeros(1, 4)])


def test_suppression_keeps_at_most_ten_and_stops_when_all_are_suppressed():
    boxes = torch.tensor([[[0.0, 0, 8, 8]] * 12, [[8.0 * i, 0, 8 * i + 8, 8] for i in range(12)]])
    scores = torch.rand(2, 12)
    kept = non_maximum_suppression(scores, boxes, 10, 0.3)
    assert kept.sum(1).tolist() == [1, 10]
    assert kept[0, scores[0].argmax()]
    assert not kept[1, scores[1].argsort()[:2]].any()
