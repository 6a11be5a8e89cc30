"""Losses on what dense heads predict: against their equations, prior by prior."""

import math

import pytest
import torch

from kd_dense.functional import divergence
from kd_dense.losses import (
    ADLLoss,
    BCKDLoss,
    CrossKDLoss,
    HeadBoxes,
    PGDBoxLoss,
    PGDClassLoss,
    adl_loss,
    bckd_loss,
    crosskd_loss,
    pgd_class_loss,
)
from kd_dense.losses.ld.head_targets import anchors_of
from kd_dense.losses.predictions.boxes import (
    Decoded,
    decode_deltas,
    decode_distances,
    expected_distances,
    overlap,
    overlap_loss,
    rows_of_priors,
)
from kd_dense.losses.predictions.heads import focal_difference
from kd_dense.losses.predictions.key_regions import KeyRegions, key_regions
from tests.losses.ld_head import (
    BINS,
    BOXES,
    CLASSES,
    SHAPES,
    STRIDES,
    Packed,
    make_maps,
    make_targets,
    prior_logits,
    unpack,
)


def boxes_of_distributions(targets):
    """Decodes the box distributions of the toy head, by either model."""
    per_position = len(targets.priors[0]) // (SHAPES[0][0] * SHAPES[0][1])

    def decode(maps):
        rows = [rows_of_priors(m, per_position) for m in maps]
        priors = [p.to(x.dtype) for p, x in zip(targets.priors, rows, strict=True)]
        boxes = [
            decode_distances(p, stride * expected_distances(x))
            for p, stride, x in zip(priors, targets.strides, rows, strict=True)
        ]
        return Decoded(priors, boxes)

    return HeadBoxes(decode, decode)


class Predictions(Packed):
    """The contract, for losses of a head's maps."""

    def keywords(self, images):
        found = super().keywords(images)
        boxes = boxes_of_distributions(found['head_targets'])
        return {k: v for k, v in (found | {'head_boxes': boxes}).items() if k in self.loss.needs}

    def test_gradient_is_right(self):
        student, teacher = self.example()
        teacher = teacher.detach()
        assert torch.autograd.gradcheck(
            lambda x: self.value(x, teacher), (student,), fast_mode=True
        )

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = make_maps(), make_maps()
        teacher[1] = teacher[1][..., :3]
        with pytest.raises(ValueError, match=r'level 1: expected class logits.*\(3, 3, 3, 3\)'):
            self.loss(student, teacher, **self.keywords(3))


def pull(function, inputs):
    return torch.autograd.grad(function, inputs, allow_unused=True)


def slow_bckd(student, teacher, targets, per_position=1, beta=1.0, positive_levels_only=True):
    """Both parts, one prior after the other."""
    levels = len(targets.labels)
    n = max(int(targets.positive.sum()), 1)
    decoded = boxes_of_distributions(targets).student
    ours, theirs = (decoded(maps[levels : 2 * levels]).boxes for maps in (student, teacher))
    parts = {'classes': 0.0, 'boxes': 0.0}
    for level in range(levels):
        labels = targets.labels[level]
        if positive_levels_only and not ((labels >= 0) & (labels < CLASSES)).any():
            continue
        for image in range(len(labels)):
            for prior in range(labels.shape[1]):
                s, t = (
                    prior_logits(maps[level], per_position, image, prior)
                    for maps in (student, teacher)
                )
                p, q = s.sigmoid(), t.sigmoid()
                weight = targets.label_weights[level][image, prior]
                entropy = -q * p.log() - (1 - q) * (1 - p).log()
                parts['classes'] += weight * ((q - p).abs() ** beta * entropy).sum() / n
                apart = 1 - slow_giou(ours[level][image, prior], theirs[level][image, prior])
                parts['boxes'] += 4 * weight * (q - p).abs().max() * apart / n
    return parts


def slow_giou(a, b):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.tolist(), b.tolist()
    shared = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    hull = (max(x2, u2) - min(x1, u1)) * (max(y2, v2) - min(y1, v1))
    return shared / union - (hull - union) / hull


class TestBCKD(Predictions):
    loss = BCKDLoss(weight=2.0)

    def function(self, student, teacher, **_):
        return self.call(BCKDLoss(), student, teacher)

    def test_gradient_is_right(self):
        """Where the models differ is a constant for the gradient of the boxes."""
        student, teacher = (make_maps(seed=seed) for seed in (0, 1))
        for kind, weights in ((0, dict(box_weight=0)), (2, dict(class_weight=0))):
            loss = BCKDLoss(**weights)

            def value(one, kind=kind, loss=loss):
                maps = [*student[:kind], one, *student[kind + 1 :]]
                return sum(loss(maps, teacher, **self.keywords(3)).values())

            one = student[kind].clone().requires_grad_()
            assert torch.autograd.gradcheck(value, (one,), fast_mode=True)

    @pytest.mark.parametrize('per_position', [1, 2])
    @pytest.mark.parametrize('switches', [{}, dict(positive_levels_only=False), dict(beta=2.0)])
    def test_matches_the_equation_prior_by_prior(self, per_position, switches):
        targets = make_targets(per_position=per_position)
        student, teacher = (make_maps(per_position=per_position, seed=seed) for seed in (0, 1))
        boxes = boxes_of_distributions(targets)
        found = bckd_loss(student, teacher, targets, boxes, **switches)
        expected = slow_bckd(student, teacher, targets, per_position, **switches)
        for part, value in expected.items():
            assert found[part].item() == pytest.approx(float(value), rel=1e-6)

    def test_levels_without_positives_count_where_it_is_asked_for(self):
        student, teacher = (make_maps(seed=seed) for seed in (0, 1))
        student = [x.requires_grad_() for x in student]
        for only in (True, False):
            loss = BCKDLoss(positive_levels_only=only)
            total = sum(loss(student, teacher, **self.keywords(3)).values())
            grads = torch.autograd.grad(total, student)
            assert [bool(g.any()) for g in grads] == [True, not only, True, not only]

    @pytest.mark.parametrize('count', [0, 1, 1000])
    def test_any_number_of_boxes(self, count):
        targets = make_targets([BOXES[0][:1].expand(count, 4), BOXES[1]])
        student, teacher = (make_maps(2, seed=seed) for seed in (0, 1))
        student = [x.requires_grad_() for x in student]
        boxes = boxes_of_distributions(targets)
        total = sum(bckd_loss(student, teacher, targets, boxes).values())
        assert total.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, student))
        if count == 0:
            assert total == 0

    def test_logits_that_are_sure_are_finite(self):
        student, teacher = (
            [(200 * x).requires_grad_() for x in make_maps(seed=seed)] for seed in (0, 1)
        )
        total = sum(self.loss(student, teacher, **self.keywords(3)).values())
        assert total.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, student))

    def test_the_teacher_may_predict_boxes_in_another_form(self):
        targets, student = make_targets(), make_maps()
        teacher = make_maps(seed=1)
        boxes = boxes_of_distributions(targets)
        decoded = boxes.teacher(teacher[2:]).boxes
        plain = [b.mT.unflatten(2, shape) for b, shape in zip(decoded, SHAPES, strict=True)]

        def decode(maps):
            return Decoded(targets.priors, [rows_of_priors(m, 1) for m in maps])

        expected = bckd_loss(student, teacher, targets, boxes)
        found = bckd_loss(student, [*teacher[:2], *plain], targets, boxes._replace(teacher=decode))
        assert found['boxes'].item() == pytest.approx(expected['boxes'].item(), rel=1e-12)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(class_weight=-1.0), 'finite class_weight >= 0'),
            (dict(box_weight=math.nan), 'finite box_weight >= 0'),
            (dict(beta=0.5), 'beta >= 1'),
        ],
    )
    def test_rejects_bad_arguments(self, change, message):
        with pytest.raises(ValueError, match=message):
            BCKDLoss(**change)

    def test_says_what_a_head_lacks(self):
        targets = make_targets()
        maps = make_maps()
        with pytest.raises(ValueError, match='student yields 3 maps, expected 2 kinds on 2'):
            anchors_of(maps[:3], maps, targets)
        with pytest.raises(ValueError, match=r'map 2 of the heads: expected 1 x n channels'):
            anchors_of(maps, [*maps[:2], maps[2][..., :2], maps[3]], targets)


class TestADL(Predictions):
    loss = ADLLoss(weight=2.0)
    zero_on_match = False  # a cross-entropy

    def function(self, student, teacher, **_):
        return self.call(ADLLoss(), student, teacher)

    def test_zero_when_student_equals_teacher_with_the_papers_divergence(self):
        maps = make_maps()
        assert ADLLoss(entropy=1.0)(maps, maps, **self.keywords(3)).abs() < 1e-12

    def test_two_half_batches_average_to_the_whole(self):
        """With the number of positives as divisor, which is the same in all images here."""
        student, teacher = (x[:2] for x in self.example())
        loss = ADLLoss(power=None)
        halves = [self.call(loss, student[i : i + 1], teacher[i : i + 1]) for i in range(2)]
        assert torch.allclose(sum(halves) / 2, self.call(loss, student, teacher))

    @pytest.mark.parametrize(
        'settings', [{}, dict(alpha=0.25, gamma=1.0, entropy=1.0), dict(power=None)]
    )
    def test_matches_the_equation_class_by_class(self, settings):
        s = dict(alpha=0.5, gamma=2.0, entropy=0.0, power=1.8) | settings
        targets, (student, teacher) = make_targets(), (make_maps(seed=seed) for seed in (0, 1))
        total = normal = 0.0
        for level, labels in enumerate(targets.labels):
            for image in range(len(labels)):
                for prior in range(labels.shape[1]):
                    x, t = (prior_logits(m[level], 1, image, prior) for m in (student, teacher))
                    for p, q in zip(x.sigmoid().tolist(), t.sigmoid().tolist(), strict=True):
                        normal += q ** (s['power'] or 0)
                        if targets.label_weights[level][image, prior] == 0:
                            continue
                        d = -q * math.log(p) - (1 - q) * math.log(1 - p)
                        d += s['entropy'] * (q * math.log(q) + (1 - q) * math.log(1 - q))
                        value = -s['alpha'] * q * math.log(p)
                        value -= (1 - s['alpha']) * (1 - q) * math.log(1 - p)
                        total += (1 - math.exp(-d)) ** s['gamma'] * value
        n = normal if s['power'] else int(targets.positive.sum())
        found = adl_loss(student, teacher, targets, **settings)
        assert found.item() == pytest.approx(total / n, rel=1e-9)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(alpha=2.0), 'alpha from 0 to 1'),
            (dict(gamma=0.5), 'gamma >= 1'),
            (dict(entropy=-1.0), 'entropy >= 0'),
            (dict(power=0.0), 'power > 0 or None'),
        ],
    )
    def test_rejects_bad_arguments(self, change, message):
        with pytest.raises(ValueError, match=message):
            ADLLoss(**change)


def slow_crosskd(student, teacher, targets, kind):
    """Classes and boxes, one prior after the other."""
    levels = len(targets.labels)
    n = max(int(targets.positive.sum()), 1)
    decoded = boxes_of_distributions(targets).teacher
    ours, theirs = (decoded(maps[levels:]).boxes for maps in (student, teacher))
    classes = boxes = weights = 0.0
    for level, labels in enumerate(targets.labels):
        for image in range(len(labels)):
            for prior in range(labels.shape[1]):
                place = 1, image, prior
                p, q = (prior_logits(m[level], *place).sigmoid() for m in (student, teacher))
                label_weight = targets.label_weights[level][image, prior]
                entropy = -q * p.log() - (1 - q) * (1 - p).log()
                classes += label_weight * ((q - p).abs() * entropy).sum() / n
                weight = q.max() * (label_weight > 0)
                weights += weight
                if kind == 'distributions':
                    s, t = (
                        prior_logits(m[levels + level], *place).view(4, BINS)
                        for m in (student, teacher)
                    )
                    apart = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum() / 4
                else:
                    a, b = ours[level][image, prior], theirs[level][image, prior]
                    iou = max(float(overlap(a, b).iou), 1e-6)
                    apart = 1 - slow_giou(a, b) if kind == 'giou' else -math.log(iou)
                boxes += weight * apart
    return float(classes), float(boxes / (weights if kind == 'distributions' else n))


class TestCrossKD(Predictions):
    loss = CrossKDLoss(weight=2.0)

    def function(self, student, teacher, **_):
        return self.call(CrossKDLoss(), student, teacher)

    @pytest.mark.parametrize('kind', ['giou', 'iou', 'distributions'])
    def test_matches_the_equation_prior_by_prior(self, kind):
        targets = make_targets()
        student, teacher = (make_maps(seed=seed) for seed in (0, 1))
        found = crosskd_loss(
            student, teacher, targets, boxes_of_distributions(targets), boxes=kind
        )
        classes, boxes = slow_crosskd(student, teacher, targets, kind)
        assert found['classes'].item() == pytest.approx(classes, rel=1e-6)
        assert found['boxes'].item() == pytest.approx(boxes, rel=1e-6)

    @pytest.mark.parametrize('count', [0, 1, 1000])
    @pytest.mark.parametrize('kind', ['giou', 'distributions'])
    def test_any_number_of_boxes(self, count, kind):
        targets = make_targets([BOXES[0][:1].expand(count, 4), BOXES[1]])
        student, teacher = (make_maps(2, seed=seed) for seed in (0, 1))
        student = [x.requires_grad_() for x in student]
        decode = boxes_of_distributions(targets)
        total = sum(crosskd_loss(student, teacher, targets, decode, boxes=kind).values())
        assert total > 0  # the background counts
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, student))

    def test_no_label_counts_and_nothing_is_compared(self):
        targets = make_targets()
        targets = targets._replace(label_weights=[0 * w for w in targets.label_weights])
        maps = (make_maps(seed=seed) for seed in (0, 1))
        found = crosskd_loss(
            *maps, targets, boxes_of_distributions(targets), boxes='distributions'
        )
        assert all(v == 0 for v in found.values())

    def test_centerness(self):
        targets, third = make_targets(), [torch.randn(2, 3, 1, *s).double() for s in SHAPES]
        student, teacher = ([*make_maps(seed=i), *(x[i] for x in third)] for i in (0, 1))
        decode = boxes_of_distributions(targets)
        found = crosskd_loss(student, teacher, targets, decode, centerness_weight=2.0)
        x, t = (torch.cat([m.flatten(1) for m in maps[4:]], 1) for maps in (student, teacher))
        p, q, where = x.sigmoid(), t.sigmoid(), targets.positive
        entropy = (-q * p.log() - (1 - q) * (1 - p).log())[where].sum() / where.sum()
        assert found['centerness'].item() == pytest.approx(2 * float(entropy), rel=1e-6)

    def test_the_sum_of_centerness_may_be_the_divisor(self):
        targets = make_targets()
        maps = [make_maps(seed=seed) for seed in (0, 1)]
        decode = boxes_of_distributions(targets)
        with pytest.raises(ValueError, match="take normaliser='positives'"):
            crosskd_loss(*maps, targets, decode, normaliser='centerness')
        half = [0.5 * level for level in targets.positive.double().split(targets.sizes, 1)]
        found = crosskd_loss(
            *maps, targets._replace(centerness=half), decode, normaliser='centerness'
        )
        expected = crosskd_loss(*maps, targets, decode)
        assert found['boxes'].item() == pytest.approx(2 * expected['boxes'].item(), rel=1e-6)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(boxes='ious'), "boxes to be one of .*'giou'"),
            (dict(normaliser='x'), 'normaliser to be one of'),
            (dict(temperature=0.0), 'temperature > 0'),
            (dict(centerness_weight=-1.0), 'finite centerness_weight >= 0'),
            (dict(beta=0.0), 'beta >= 1'),
        ],
    )
    def test_rejects_bad_arguments(self, change, message):
        with pytest.raises(ValueError, match=message):
            CrossKDLoss(**change)

    def test_says_that_a_head_has_no_distributions(self):
        targets = make_targets()
        maps = [*make_maps()[:2], *(m[:, :4] for m in make_maps()[2:])]
        with pytest.raises(ValueError, match=r"does each head predict .* take 'giou'"):
            crosskd_loss(maps, maps, targets, None, boxes='distributions')


class TestFocalDifference:
    @pytest.mark.parametrize('beta', [1.0, 2.0, 1.5])
    def test_is_what_autograd_makes_of_the_equation(self, beta):
        student, teacher = (make_maps(seed=seed)[0].requires_grad_() for seed in (0, 1))
        (found,) = torch.autograd.grad(
            focal_difference([student], [teacher], [1], beta).sum(), student
        )
        p, q = student.sigmoid(), teacher.detach().sigmoid()
        entropy = -q * p.log() - (1 - q) * (1 - p).log()
        (expected,) = torch.autograd.grad(((q - p).abs() ** beta * entropy).sum(), student)
        assert torch.allclose(found, expected, rtol=1e-10)

    def test_keeps_one_map_for_the_backward_pass(self):
        student, teacher = (make_maps(seed=seed)[0].requires_grad_() for seed in (0, 1))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            focal_difference([student], [teacher], [1])
        assert sum(x.numel() for x in kept) == student.numel()


class TestBoxes:
    def test_overlaps_are_those_of_pairs(self):
        generator = torch.Generator().manual_seed(0)
        corners = 20 * torch.rand(2, 40, 2, generator=generator, dtype=torch.float64)
        sides = 10 * torch.rand(2, 40, 2, generator=generator, dtype=torch.float64)
        a, b = torch.cat([corners, corners + sides], 2)
        found = overlap(a, b)
        expected = [slow_giou(x, y) for x, y in zip(a, b, strict=True)]
        assert found.giou.tolist() == pytest.approx(expected)
        assert torch.allclose(overlap_loss(a, b, 'giou'), 1 - found.giou)
        assert torch.allclose(overlap_loss(a, a, 'iou'), torch.zeros(40).double())

    def test_boxes_without_area_have_finite_overlaps(self):
        flat = torch.tensor([[4.0, 4.0, 4.0, 4.0]], requires_grad=True)
        for kind in ('giou', 'iou'):
            value = overlap_loss(flat, torch.zeros(1, 4), kind).sum()
            (grad,) = torch.autograd.grad(value, flat)
            assert value.isfinite()
            assert grad.isfinite().all()

    def test_deltas_are_bounded(self):
        anchor = torch.tensor([[0.0, 0.0, 8.0, 16.0]])
        deltas = torch.tensor([[[0.0, 0.0, 1e4, -1e4]]])
        x1, y1, x2, y2 = decode_deltas(anchor, deltas)[0, 0].tolist()
        assert x2 - x1 == pytest.approx(8 * 1000 / 16)
        assert y2 - y1 == pytest.approx(16 * 16 / 1000)
        shifted = decode_deltas(anchor, torch.full((1, 1, 4), 9.0), largest_shift=2.0)[0, 0]
        assert ((shifted[:2] + shifted[2:]) / 2).tolist() == pytest.approx([6.0, 10.0], rel=1e-4)

    def test_rows_are_in_the_order_of_priors(self):
        maps = make_maps(per_position=2)
        rows = rows_of_priors(maps[0], 2)
        for prior in (0, 1, 17, 83):
            assert torch.equal(rows[1, prior], prior_logits(maps[0], 2, 1, prior))

    def test_strides_are_those_of_the_levels(self):
        targets = make_targets()
        decoded = boxes_of_distributions(targets).student(
            [torch.zeros_like(m) for m in make_maps()[2:]]
        )
        for priors, boxes, stride in zip(decoded.priors, decoded.boxes, STRIDES, strict=True):
            sides = boxes[0, :, 2:] - boxes[0, :, :2]
            assert torch.allclose(sides, torch.full_like(sides, 4.0 * stride))
            assert len(priors) == boxes.shape[1]


def test_a_packed_head_is_what_it_was():
    maps = make_maps()
    packed = torch.cat([x.flatten(1) for x in maps], 1)
    assert all(torch.equal(a, b) for a, b in zip(unpack(packed, maps), maps, strict=True))


def make_features(images=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, 4, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in SHAPES
    ]


def objects_of(images):
    """The same boxes on all images, with their classes."""
    return [BOXES[0].float()] * images, [torch.tensor([0, 2])] * images


class Guided(Packed):
    """The contract; all images have the same objects and the same predictions of the teacher."""

    maps = staticmethod(make_features)

    def keywords(self, images):
        targets = super().keywords(images)['head_targets']
        outputs = [m.float().expand(images, -1, -1, -1) for m in make_maps(1, seed=3)]
        boxes, labels = objects_of(images)
        return dict(
            boxes=boxes,
            labels=labels,
            head_outputs=(outputs, outputs),
            head_boxes=boxes_of_distributions(targets),
        )

    def function(self, student, teacher, **_):
        return self.call(type(self.loss)(jitter=0.0), student, teacher)

    def test_gradient_is_right(self):
        student, teacher = self.example()
        teacher = teacher.detach()
        assert torch.autograd.gradcheck(
            lambda x: self.value(x, teacher), (student,), fast_mode=True
        )

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = make_features(), make_features()
        student[1] = student[1][:, :2]
        with pytest.raises(ValueError, match=r'\(3, 2, 3, 4\).*\(3, 4, 3, 4\)'):
            self.loss(student, teacher, **self.keywords(3))

    def test_says_what_is_not_a_tower(self):
        maps, keywords = make_features(), self.keywords(3)
        with pytest.raises(
            ValueError, match='yields 4 maps, expected class logits and boxes of 4'
        ):
            self.loss(maps * 2, maps * 2, **keywords)
        with pytest.raises(ValueError, match=r'level 0 is \(3, 4, 3, 4\) at the tap'):
            self.loss(maps[::-1], maps[::-1], **keywords)

    @pytest.mark.parametrize('count', [0, 1, 1000])
    def test_any_number_of_boxes(self, count):
        keywords = self.keywords(3)
        boxes = BOXES[0][:1].float().expand(count, 4)
        keywords['boxes'] = [boxes, boxes[:0], boxes]
        keywords['labels'] = [torch.zeros(len(b), dtype=torch.long) for b in keywords['boxes']]
        student, teacher = (make_features(seed=seed) for seed in (0, 1))
        student = [x.requires_grad_() for x in student]
        found = self.loss(student, teacher, **keywords)
        assert (found['foreground'] > 0) == (count > 0)
        total = sum(found.values())
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, student))

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(trust=2.0), 'trust from 0 to 1'),
            (dict(topk=0), 'topk as an int >= 1'),
            (dict(jitter=-1.0), 'finite jitter >= 0'),
            (dict(temperature=0.0), 'temperature > 0'),
            (dict(foreground=math.inf), 'finite foreground >= 0'),
        ],
    )
    def test_rejects_bad_arguments(self, change, message):
        with pytest.raises(ValueError, match=message):
            type(self.loss)(**change)


class TestPGDClasses(Guided):
    loss = PGDClassLoss(weight=2.0, jitter=0.0)

    def test_images_are_weighed_by_their_own_masks_unless_they_are_mixed(self):
        regions = KeyRegions(
            [torch.rand(3, *shape).double() for shape in SHAPES],
            [torch.zeros(3, *shape).double() for shape in SHAPES],
        )
        student, teacher = (make_features(seed=seed) for seed in (0, 1))

        def one(i, j):
            masks = KeyRegions(*([m[j : j + 1] for m in maps] for maps in regions))
            maps = ([m[i : i + 1] for m in x] for x in (student, teacher))
            return pgd_class_loss(*maps, masks)['foreground']

        own = pgd_class_loss(student, teacher, regions)['foreground']
        mixed = pgd_class_loss(student, teacher, regions, mix_images=True)['foreground']
        assert torch.allclose(own, sum(one(i, i) for i in range(3)) / 3)
        assert torch.allclose(mixed, sum(one(i, j) for i in range(3) for j in range(3)) / 3)

    def test_each_level_weighs_more(self):
        ones = [torch.ones(1, *shape).double() for shape in SHAPES]
        student, teacher = (make_features(1, seed=seed) for seed in (0, 1))
        steps = [
            pgd_class_loss(student, teacher, KeyRegions(ones, ones), level_step=step)['foreground']
            for step in (0.0, 1.0)
        ]
        second = pgd_class_loss(student[1:], teacher[1:], KeyRegions(ones[1:], ones[1:]))
        assert torch.allclose(steps[1] - steps[0], second['foreground'])


class TestPGDBoxes(Guided):
    loss = PGDBoxLoss(weight=2.0, jitter=0.0)


class TestKeyRegions:
    def regions(self, **settings):
        keywords = TestPGDClasses().keywords(2)
        outputs = keywords['head_outputs'][1]
        return key_regions(
            outputs, keywords['head_boxes'], keywords['boxes'], keywords['labels'], **settings
        )

    def test_lie_in_objects_at_the_best_positions(self):
        found = self.regions(topk=5, jitter=0.0)
        for weights, background in zip(*found, strict=True):
            assert not (weights * background).any()
            assert ((weights >= 0) & (weights <= 1)).all()
        count = sum(int((w[0] > 0).sum()) for w in found.weights)
        assert 0 < count <= 2 * 5

    def test_more_than_there_are_is_all(self):
        found = self.regions(topk=10**6, jitter=0.0)
        inside = sum(int((b[0] == 0).sum()) for b in found.background)
        assert sum(int((w[0] > 0).sum()) for w in found.weights) == inside

    def test_the_jitter_comes_from_the_default_generator(self):
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(self.regions(topk=5).weights[0])
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_objects_are_looked_at_in_blocks(self, monkeypatch):
        whole = self.regions(topk=5, jitter=0.0)
        monkeypatch.setattr(divergence, 'CPU_BLOCK_BYTES', 8)
        for one, other in zip(whole, self.regions(topk=5, jitter=0.0), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
