import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kd_dense.losses import HeadTargets, LDImitationLoss, LDLoss, ld, ld_loss, ld_regions
from kd_dense.losses.ld_imitation import general_instances, imitation_loss
from kd_dense.losses.ld_regions import (
    box_iou,
    box_overlaps,
    fine_grained_region,
    inside_region,
    non_maximum_suppression,
    vlr_region,
)
from tests.losses.contract import LossContract

SHAPES = ((6, 7), (3, 4))
STRIDES = [8, 16]
CLASSES, BINS = 3, 5
BOXES = [
    torch.tensor([[3.3, 4.1, 36.2, 33.7], [20.9, 10.2, 50.1, 47.3]], dtype=torch.float64),
    torch.zeros(0, 4, dtype=torch.float64),
    torch.tensor([[9.7, 1.3, 45.8, 38.9]], dtype=torch.float64),
]
ALL_PARTS = dict(kd_vlr_weight=3.0)
VARIANTS = {
    'gfl': ALL_PARTS,
    'gfl-code': dict(ALL_PARTS, diou='code', published_batch=None, topk=4),
    'atss': dict(ALL_PARTS, vlr_weight=0.0375, vlr_factor=4),
    'fcos': dict(ALL_PARTS, region='inside', vlr_weight=0.0625, vlr_factor=4),
    'retina': dict(
        ALL_PARTS,
        main_weight=5,
        vlr_weight=0.15,
        vlr_factor=4,
        kd_temperature=8,
        vlr_on_positives=False,
        joint_sides=True,
    ),
}


def make_anchors(per_position=1):
    """Anchors of each level; those of one position have different shapes and centres."""
    levels = []
    for (height, width), stride in zip(SHAPES, STRIDES, strict=True):
        rows = []
        for y in range(height):
            for x in range(width):
                for k in range(per_position):
                    cx, cy = (x + 0.1 * k) * stride, (y - 0.2 * k) * stride
                    w, h = stride * (2.0 + 0.5 * k), stride * (2.0 - 0.3 * k)
                    rows.append([cx - w, cy - h, cx + w, cy + h])
        levels.append(torch.tensor(rows, dtype=torch.float64))
    return levels


def make_targets(boxes=BOXES, per_position=1, dtype=torch.float64):
    """Positives on the first level alone; one image has a column of padding."""
    priors, labels, valid = make_anchors(per_position), [], []
    generator = torch.Generator().manual_seed(1)
    for level, (height, width) in enumerate(SHAPES):
        size = (len(boxes), height * width * per_position)
        drawn = torch.randint(CLASSES, size, generator=generator)
        positive = torch.rand(size, generator=generator) < (0.15 if level == 0 else 0)
        has_boxes = torch.tensor([len(b) > 0 for b in boxes])[:, None]
        inside = torch.ones(len(boxes), height, width, per_position, dtype=torch.bool)
        inside[-1, :, -1] = False
        valid.append(inside.flatten(1))
        labels.append(torch.where(positive & has_boxes & valid[-1], drawn, CLASSES))
    weights = [(torch.rand(v.shape, generator=generator) * v).to(dtype) for v in valid]
    priors, boxes = [p.to(dtype) for p in priors], [b.to(dtype) for b in boxes]
    return HeadTargets(priors, labels, weights, valid, boxes, CLASSES, STRIDES)


def make_maps(images=3, per_position=1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    channels = [per_position * CLASSES] * 2 + [per_position * 4 * BINS] * 2
    return [
        2 * torch.randn(images, c, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for c, shape in zip(channels, SHAPES * 2, strict=True)
    ]


def prior_logits(level_map, per_position, image, prior):
    """The logits of one prior, cut out of a map."""
    position, k = divmod(prior, per_position)
    y, x = divmod(position, level_map.shape[3])
    size = level_map.shape[1] // per_position
    return level_map[image, k * size : (k + 1) * size, y, x]


def slow_kl(student, teacher, temperature):
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum()
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum()
    return temperature**2 * sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True)) / len(p)


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


def slow_ld(student, teacher, targets, per_position=1, only_level=None, **changes):
    """All parts, one prior after the other, of all levels or of one."""
    settings = dict(
        main_weight=0.25,
        vlr_weight=0.25,
        kd_weight=10.0,
        kd_vlr_weight=0.0,
        temperature=10.0,
        kd_temperature=2.0,
        main_factor=4.0,
        vlr_factor=16.0,
        published_batch=2,
        region='vlr',
        topk=9,
        diou='paper',
        vlr_on_positives=True,
        joint_sides=False,
    )
    assert changes.keys() <= settings.keys()
    s = settings | changes
    levels, images = len(targets.labels), len(targets.boxes)
    parts = dict.fromkeys(('main', 'vlr', 'kd', 'kd_vlr'), torch.zeros((), dtype=torch.float64))
    regions = []
    for n in range(images):
        valid = [v[n] for v in targets.valid]
        if s['region'] == 'vlr':
            regions.append(slow_vlr(targets.priors, valid, targets.boxes[n], s['topk'], s['diou']))
        else:
            inside = slow_inside(targets.priors, targets.boxes[n])
            ok = torch.cat(valid).tolist()
            regions.append([float(a and b) for a, b in zip(inside, ok, strict=True)])
    for level in range(levels) if only_level is None else [only_level]:
        start = sum(targets.sizes[:level])
        kd, kd_vlr = [], []
        for n in range(images):
            for prior in range(targets.labels[level].shape[1]):
                maps = [
                    prior_logits(x[i], per_position, n, prior)
                    for x in (student, teacher)
                    for i in (level, levels + level)
                ]
                ours, our_box, theirs, their_box = maps
                score = ours.detach().sigmoid().max()
                if s['joint_sides']:
                    box = slow_kl(our_box, their_box, s['temperature'])
                else:
                    sides = zip(our_box.view(4, -1), their_box.view(4, -1), strict=True)
                    box = sum(slow_kl(a, b, s['temperature']) for a, b in sides)
                label_weight = targets.label_weights[level][n, prior]
                classes = label_weight * slow_kl(ours, theirs, s['kd_temperature'])
                positive = targets.labels[level][n, prior] < targets.num_classes
                weight = regions[n][start + prior]
                if positive and (not s['vlr_on_positives'] or s['region'] == 'inside'):
                    weight = 0.0
                if positive:
                    parts['main'] = parts['main'] + score * box
                    kd.append(classes)
                if weight > 0:
                    factor = score if s['region'] == 'inside' else weight
                    parts['vlr'] = parts['vlr'] + factor * box
                    kd_vlr.append(classes)
        for name, values in (('kd', kd), ('kd_vlr', kd_vlr)):
            if values:
                parts[name] = parts[name] + sum(values) / len(values)
    batch = 1 if s['published_batch'] is None else s['published_batch'] / images
    parts['main'] = parts['main'] * batch * s['main_weight'] / s['main_factor']
    parts['vlr'] = parts['vlr'] * batch * s['vlr_weight'] / s['vlr_factor']
    parts['kd'] = parts['kd'] * s['kd_weight']
    parts['kd_vlr'] = parts['kd_vlr'] * s['kd_vlr_weight']
    return parts


def pack(maps):
    return torch.cat([x.flatten(1) for x in maps], 1)


def unpack(packed, like):
    """The maps of a head, or of a neck, from one tensor for each image."""
    sizes = [x[0].numel() for x in like]
    return [x.reshape(-1, *y.shape[1:]) for x, y in zip(packed.split(sizes, 1), like, strict=True)]


class Packed(LossContract):
    """The contract for a loss that takes the lists of maps of a tap.

    Its maps are packed into one tensor; all its images have the same boxes and labels.
    """

    maps = staticmethod(make_maps)

    def keywords(self, images):
        targets = make_targets([BOXES[0]], dtype=torch.float32)
        repeated = {
            name: [x.expand(images, -1) for x in getattr(targets, name)]
            for name in ('labels', 'label_weights', 'valid')
        }
        return {'head_targets': targets._replace(boxes=targets.boxes * images, **repeated)}

    def example(self, dtype=torch.float64):
        student, teacher = (pack(self.maps(seed=seed)).to(dtype) for seed in (0, 1))
        return student.requires_grad_(), teacher.requires_grad_()

    def call(self, loss, student, teacher):
        maps = (unpack(x, self.maps()) for x in (student, teacher))
        result = loss(*maps, **self.keywords(len(student)))
        return sum(result.values()) if isinstance(result, dict) else result

    def value(self, student, teacher):
        return self.call(self.loss, student, teacher)

    def test_is_a_finite_scalar_or_its_named_parts(self):
        maps = (unpack(x, self.maps()) for x in self.example())
        keywords = self.keywords(3)
        result = self.loss(*maps, **keywords)
        assert tuple(result if isinstance(result, dict) else ()) == self.loss.parts
        assert set(keywords) == set(self.loss.needs)
        for value in result.values() if isinstance(result, dict) else [result]:
            assert value.shape == ()
            assert value.isfinite()


class TestLD(Packed):
    loss = LDLoss(weight=3.0, **ALL_PARTS)

    def function(self, student, teacher):
        return self.call(lambda *a, **k: ld_loss(*a, **k, **ALL_PARTS), student, teacher)

    def test_gradient_is_right(self):
        # The largest class score is a weight of the box parts and takes no gradient: classes
        # and boxes are checked apart.
        student, teacher = ([x.requires_grad_() for x in make_maps(seed=s)] for s in (0, 1))
        targets = make_targets()

        def value(names, *maps):
            parts = ld_loss(maps, teacher, targets, **ALL_PARTS)
            return sum(parts[name] for name in names)

        boxes, classes = ('main', 'vlr'), ('kd', 'kd_vlr')
        assert torch.autograd.gradcheck(
            lambda *x: value(boxes, *student[:2], *x), tuple(student[2:]), fast_mode=True
        )
        assert torch.autograd.gradcheck(
            lambda *x: value(classes, *x, *student[2:]), tuple(student[:2]), fast_mode=True
        )

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = make_maps(), make_maps()
        teacher[2] = teacher[2][:, :-4]
        with pytest.raises(ValueError, match=r'map 2 .*\(3, 20, 6, 7\).*\(3, 16, 6, 7\)'):
            ld_loss(student, teacher, make_targets())


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('per_position', [1, 3])
def test_matches_the_equations_prior_by_prior(variant, per_position):
    arguments = VARIANTS[variant]
    student, teacher = (make_maps(per_position=per_position, seed=s) for s in (0, 1))
    student = [x.requires_grad_() for x in student]
    targets = make_targets(per_position=per_position)
    found = ld_loss(student, teacher, targets, **arguments)
    expected = slow_ld(student, teacher, targets, per_position, **arguments)
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=0)
    ours = torch.autograd.grad(sum(found.values()), student)
    theirs = torch.autograd.grad(sum(expected.values()), student)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_module_passes_every_argument_on():
    changes = dict(
        main_weight=0.5,
        vlr_weight=0.75,
        kd_weight=3.0,
        kd_vlr_weight=2.0,
        temperature=4.0,
        kd_temperature=3.0,
        main_factor=2.0,
        vlr_factor=8.0,
        published_batch=3,
        topk=3,
        diou='code',
        vlr_on_positives=False,
        joint_sides=True,
    )
    student, teacher, targets = make_maps(), make_maps(seed=1), make_targets()
    default = ld_loss(student, teacher, targets, **ALL_PARTS)
    for name, value in changes.items():
        change = ALL_PARTS | {name: value}
        found = LDLoss(**change)(student, teacher, head_targets=targets)
        assert found == ld_loss(student, teacher, targets, **change)
        assert found != default, name
    change = dict(region='inside')
    assert LDLoss(**change)(student, teacher, targets) == ld_loss(
        student, teacher, targets, **change
    )


def test_weights_of_the_region_may_be_given():
    student, teacher, targets = make_maps(), make_maps(seed=1), make_targets()
    region = vlr_region(targets.priors, torch.cat(targets.valid, 1), targets.boxes)
    given = list(region.split(targets.sizes, 1))
    assert ld_loss(student, teacher, targets, region=given) == ld_loss(student, teacher, targets)


def test_the_score_is_a_constant_for_the_gradient():
    student = [x.requires_grad_() for x in make_maps()]
    parts = ld_loss(student, make_maps(seed=1), make_targets(), region='inside')
    grads = torch.autograd.grad(parts['main'] + parts['vlr'], student, allow_unused=True)
    assert all(g is None or not g.any() for g in grads[:2])
    assert all(g.any() for g in grads[2:])


def test_a_sum_of_the_published_batch_does_not_depend_on_the_batch():
    maps, targets = (make_maps(images=1), make_maps(images=1, seed=1)), make_targets(BOXES[:1])
    twice = [[torch.cat([x, x]) for x in m] for m in maps]
    fields = ('labels', 'label_weights', 'valid')
    both = targets._replace(
        boxes=targets.boxes * 2,
        **{k: [torch.cat([x, x]) for x in getattr(targets, k)] for k in fields},
    )
    once = ld_loss(*maps, targets)
    for name, value in ld_loss(*twice, both).items():
        torch.testing.assert_close(value, once[name])
    sums, single = (
        ld_loss(*m, t, published_batch=None) for m, t in ((twice, both), (maps, targets))
    )
    for part in ('main', 'vlr'):
        torch.testing.assert_close(sums[part], 2 * single[part])
        torch.testing.assert_close(sums[part], once[part])  # the authors' batch is 2


def test_processes_average_to_one_that_holds_the_whole_batch(monkeypatch):
    student, teacher, targets = make_maps(), make_maps(seed=1), make_targets()
    student, teacher = [x[[0, 2]] for x in student], [x[[0, 2]] for x in teacher]
    fields = ('labels', 'label_weights', 'valid')

    def of(images):
        split = {k: [x[images] for x in getattr(targets, k)] for k in fields}
        return targets._replace(boxes=[targets.boxes[i] for i in images], **split)

    whole = ld_loss(student, teacher, of([0, 2]), **ALL_PARTS)
    counts = []
    monkeypatch.setattr(ld, 'mean_over_ranks', lambda c: counts.append(c) or c)
    ld_loss(student, teacher, of([0, 2]), **ALL_PARTS)
    halves = []
    for image, index in ((0, 0), (2, 1)):
        calls = iter(counts)  # with two processes the mean count is half the count of both
        monkeypatch.setattr(ld, 'mean_over_ranks', lambda c, calls=calls: next(calls) / 2)
        maps = ([x[index : index + 1] for x in m] for m in (student, teacher))
        halves.append(ld_loss(*maps, of([image]), **ALL_PARTS))
    assert len(counts) == 2
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)


def test_a_mean_count_may_be_below_one(monkeypatch):
    monkeypatch.setattr(ld, 'mean_over_ranks', lambda counts: counts / 8)
    values, members = torch.tensor([[3.0, 5.0, 7.0]]), torch.tensor([[True, True, False]])
    assert ld.mean_of_levels(values, members, [2, 1]) == 8 * 4


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('boxes', [[0], [0, 0]])
def test_images_without_boxes_give_zero_in_touch_with_the_graph(variant, boxes):
    targets = make_targets([torch.zeros(n, 4, dtype=torch.float64) for n in boxes])
    student = [x.requires_grad_() for x in make_maps(len(boxes))]
    parts = ld_loss(student, make_maps(len(boxes), seed=1), targets, **VARIANTS[variant])
    assert all(part == 0 for part in parts.values())
    assert all(part.requires_grad for part in parts.values())
    sum(parts.values()).backward()
    assert all(x.grad is not None and not x.grad.any() for x in student)


def test_a_part_of_weight_zero_costs_nothing(monkeypatch):
    student = [x.requires_grad_() for x in make_maps()]
    teacher, targets = make_maps(seed=1), make_targets()
    none = dict(main_weight=0, vlr_weight=0, kd_weight=0, kd_vlr_weight=0)
    compared = []
    monkeypatch.setattr(ld, 'mean_kl', lambda s, *a, **k: compared.append(s.shape[3]) or s.sum(3))
    monkeypatch.setattr(ld, 'vlr_region', lambda *a: pytest.fail('the region was computed'))
    for changes, expected in (
        ({}, []),
        ({'main_weight': 1.0}, [BINS] * 2),
        ({'kd_weight': 1.0}, [CLASSES] * 2),
    ):
        compared.clear()
        parts = ld_loss(student, teacher, targets, **none | changes)
        assert compared == expected
        assert all(part.requires_grad for part in parts.values())
        off = [name for name in parts if f'{name}_weight' not in changes]
        assert all(parts[name] == 0 for name in off)


def test_more_maps_of_the_head_are_not_looked_at():
    student, teacher, targets = make_maps(), make_maps(seed=1), make_targets()
    center = [torch.full((3, 1, *shape), float('nan')) for shape in SHAPES]
    assert ld_loss([*student, *center], [*teacher, *center], targets) == ld_loss(
        student, teacher, targets
    )


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
            monkeypatch.setitem(ld_regions.BLOCK, 'cpu', size)
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


def make_features(images=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, 2, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in SHAPES
    ]


def slow_imitation(student, teacher, regions):
    total = 0.0
    for s, t, region in zip(student, teacher, regions, strict=True):
        squares = [
            (s[n, c].flatten()[i] - t[n, c].flatten()[i]).item() ** 2
            for n in range(s.shape[0])
            for i in range(region.shape[1])
            if region[n, i]
            for c in range(s.shape[1])
        ]
        total += sum(squares) / len(squares) if squares else 0.0
    return total


class TestImitation(Packed):
    loss = LDImitationLoss(weight=2.0, region='inside')
    maps = staticmethod(make_features)

    def function(self, student, teacher):
        return self.call(LDImitationLoss(region='inside'), student, teacher)

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = make_features(), make_features()
        teacher[1] = teacher[1][:, :1]
        with pytest.raises(ValueError, match=r'\(3, 2, 3, 4\).*\(3, 1, 3, 4\)'):
            self.loss(student, teacher, make_targets())

    @pytest.mark.parametrize('region', ['main', 'inside', 'finegrained'])
    def test_matches_the_equation_position_by_position(self, region):
        student, teacher = make_features(), make_features(seed=1)
        targets = make_targets()
        valid = torch.cat(targets.valid, 1)
        rule = {'inside': inside_region, 'finegrained': fine_grained_region}
        members = (
            targets.positive
            if region == 'main'
            else rule[region](targets.priors, valid, targets.boxes)
        )
        expected = slow_imitation(student, teacher, members.split(targets.sizes, 1))
        value = LDImitationLoss(2.0, region)(student, teacher, targets)
        assert value.item() == pytest.approx(2 * expected, rel=1e-12)
        assert value > 0

    def test_a_position_belongs_if_one_of_its_anchors_does(self):
        student, teacher = make_features(), make_features(seed=1)
        members = [torch.rand(3, 3 * h * w) < 0.1 for h, w in SHAPES]
        joined = [m.view(3, -1, 3).any(2) for m in members]
        value = imitation_loss(student, teacher, members)
        assert value.item() == pytest.approx(slow_imitation(student, teacher, joined))

    def test_the_authors_levels_need_their_switch(self):
        student, teacher, targets = make_features(), make_features(seed=1), make_targets()
        fewer = LDImitationLoss(region='inside', positive_levels_only=True)
        every = LDImitationLoss(region='inside')
        first = inside_region(targets.priors, torch.cat(targets.valid, 1), targets.boxes)
        first, second = first.split(targets.sizes, 1)
        assert second.any()
        assert targets.positive[:, : first.shape[1]].any()
        assert not targets.positive[:, first.shape[1] :].any()
        expected = imitation_loss(student[:1], teacher[:1], [first])
        torch.testing.assert_close(fewer(student, teacher, targets), expected)
        assert every(student, teacher, targets) > expected

    @pytest.mark.parametrize('region', ['main', 'inside', 'finegrained'])
    def test_images_without_boxes_give_zero_in_touch_with_the_graph(self, region):
        student = [x.requires_grad_() for x in make_features(2)]
        targets = make_targets([torch.zeros(0, 4, dtype=torch.float64)] * 2)
        value = LDImitationLoss(region=region)(student, make_features(2, seed=1), targets)
        assert value == 0
        value.backward()
        assert all(x.grad is not None and not x.grad.any() for x in student)


class TestGeneralInstances(Packed):
    loss = LDImitationLoss(weight=2.0, region='gibox')
    maps = staticmethod(make_features)

    def keywords(self, images):
        outputs = tuple(
            [x[:1].expand(images, -1, -1, -1) for x in make_maps(seed=s)] for s in (2, 3)
        )
        return super().keywords(images) | {'head_outputs': outputs}

    def function(self, student, teacher):
        return self.call(LDImitationLoss(region='gibox'), student, teacher)

    def test_gradient_is_right(self):
        student, teacher = self.example()
        assert torch.autograd.gradcheck(
            lambda x: self.value(x, teacher.detach()), (student,), fast_mode=True
        )

    def test_names_both_shapes_when_they_differ(self):
        with pytest.raises(ValueError, match='as many maps as levels'):
            self.loss(make_features()[:1], make_features()[:1], **self.keywords(3))

    @pytest.mark.parametrize('per_position', [1, 3])
    @pytest.mark.parametrize('mix_images', [False, True])
    def test_matches_the_rule_prior_by_prior(self, mix_images, per_position):
        student, teacher = (make_maps(per_position=per_position, seed=s) for s in (0, 1))
        # Sharper distributions give larger, overlapping boxes too.
        student[2:], teacher[2:] = ([3 * x for x in m[2:]] for m in (student, teacher))
        targets = make_targets(per_position=per_position)
        found = general_instances(student, teacher, targets, mix_images)
        suppressed = 0
        for level, stride in enumerate(STRIDES):
            groups = [[]] if mix_images else [[] for _ in BOXES]
            for n in range(len(BOXES)):
                for prior in range(targets.labels[level].shape[1]):
                    ours, theirs = (
                        prior_logits(m[level], per_position, n, prior).sigmoid()
                        for m in (student, teacher)
                    )
                    gap, winner = (theirs - ours).abs().max(0)
                    model = teacher if theirs[winner] >= ours[winner] else student
                    logits = prior_logits(model[2 + level], per_position, n, prior).view(4, -1)
                    sides = (logits.softmax(1) * torch.arange(BINS)).sum(1) * stride
                    a = targets.priors[level][prior]
                    x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
                    box = torch.stack([x - sides[0], y - sides[1], x + sides[2], y + sides[3]])
                    if targets.valid[level][n, prior]:
                        groups[0 if mix_images else n].append((gap.item(), n, prior, box.tolist()))
            expected = torch.zeros_like(found[level])
            for group in groups:
                kept = []
                for entry in sorted(group, reverse=True):
                    if len(kept) == 10:
                        break
                    if all(slow_overlaps(entry[3], k[3])[0] <= 0.3 for k in kept):
                        kept.append(entry)
                        expected[entry[1], entry[2]] = True
                    else:
                        suppressed += 1
            assert torch.equal(found[level], expected)
        assert suppressed > 0

    @pytest.mark.parametrize('per_position', [1, 3])
    def test_positions_may_be_looked_at_in_any_number_at_a_time(self, per_position, monkeypatch):
        maps = [make_maps(per_position=per_position, seed=s) for s in (0, 1)]
        targets = make_targets(per_position=per_position)
        whole = general_instances(*maps, targets)
        for size in (1, 3 * per_position * 4 * BINS * 5):  # one position, or five
            monkeypatch.setitem(ld_regions.BLOCK, 'cpu', size)
            for a, b in zip(general_instances(*maps, targets), whole, strict=True):
                assert torch.equal(a, b)

    def test_an_image_does_not_depend_on_the_others(self):
        student, teacher, targets = make_maps(), make_maps(seed=1), make_targets()
        fields = ('labels', 'label_weights', 'valid')
        first = targets._replace(
            boxes=targets.boxes[:1], **{k: [x[:1] for x in getattr(targets, k)] for k in fields}
        )
        whole = general_instances(student, teacher, targets)
        alone = general_instances([x[:1] for x in student], [x[:1] for x in teacher], first)
        for a, b in zip(whole, alone, strict=True):
            assert torch.equal(a[:1], b)

    def test_keeps_at_most_ten_and_stops_when_all_are_suppressed(self):
        boxes = torch.tensor(
            [[[0.0, 0, 8, 8]] * 12, [[8.0 * i, 0, 8 * i + 8, 8] for i in range(12)]]
        )
        scores = torch.rand(2, 12)
        kept = non_maximum_suppression(scores, boxes, 10, 0.3)
        assert kept.sum(1).tolist() == [1, 10]
        assert kept[0, scores[0].argmax()]
        assert not kept[1, scores[1].argsort()[:2]].any()

    def test_asks_for_the_outputs_of_the_head(self):
        with pytest.raises(TypeError, match="'gibox' expects head_outputs"):
            self.loss(make_features(), make_features(), make_targets())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(main_weight=-1), r'main_weight >= 0, got main_weight=-1'),
        (dict(vlr_weight=math.inf), 'finite vlr_weight'),
        (dict(kd_weight=math.nan), 'finite kd_weight'),
        (dict(kd_vlr_weight=-2), 'kd_vlr_weight >= 0'),
        (dict(temperature=0), 'temperature > 0'),
        (dict(kd_temperature=-1), 'temperature > 0'),
        (dict(main_factor=0), 'main_factor > 0, got main_factor=0'),
        (dict(vlr_factor=math.nan), 'vlr_factor > 0'),
        (dict(published_batch=0), r'published_batch as an int >= 1 or None, got .*=0'),
        (dict(published_batch=0.5), r'published_batch as an int >= 1 or None, got .*=0\.5'),
        (dict(region='box'), r"region to be one of \('vlr', 'inside'\), got 'box'"),
        (dict(diou='iou'), r"diou to be one of \('paper', 'code'\), got 'iou'"),
        (dict(topk=0), 'topk >= 1, got topk=0'),
    ],
)
def test_rejects_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        LDLoss(**arguments)
    with pytest.raises(ValueError, match=message):
        ld_loss(make_maps(), make_maps(), make_targets(), **arguments)


def test_rejects_a_region_of_features_that_does_not_exist():
    with pytest.raises(ValueError, match=r"region to be one of \('main', .*got 'fitnets'"):
        LDImitationLoss(region='fitnets')


def test_rejects_maps_that_do_not_fit_the_targets():
    student, targets = make_maps(), make_targets()
    with pytest.raises(ValueError, match='student yields 3 maps, expected 2 of class logits'):
        ld_loss(student[:3], student, targets)
    with pytest.raises(ValueError, match='teacher yields 3 maps'):
        ld_loss(student, student[:3], targets)
    with pytest.raises(ValueError, match=r'level 0: expected class logits .*C = K \* 4'):
        ld_loss(student, student, targets._replace(num_classes=4))
    with pytest.raises(ValueError, match=r'level 0: .*N = 2, got'):
        ld_loss(student, student, targets._replace(boxes=BOXES[:2]))
    with pytest.raises(ValueError, match=r'level 1: .*42 priors'):
        ld_loss(student, student, targets._replace(labels=[targets.labels[0]] * 2))
    deltas = [*student[:2], *(x[:, :4] for x in student[2:])]
    with pytest.raises(ValueError, match='does the head predict distributions'):
        ld_loss(deltas, deltas, targets)
    with pytest.raises(ValueError, match=r'a region of priors .* does not fit'):
        LDImitationLoss(region='main')(make_features()[::-1], make_features()[::-1], targets)


def test_agrees_with_the_divergence_of_torch():
    student, teacher = torch.randn(2, 6, 17, dtype=torch.float64)
    expected = F.kl_div((student / 10).log_softmax(1), (teacher / 10).softmax(1), reduction='none')
    torch.testing.assert_close(ld.mean_kl(student, teacher, 10.0, 1), 100 * expected.mean(1))
