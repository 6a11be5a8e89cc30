"""Queries of decoders: their pairs, and what is compared of each pair."""

from __future__ import annotations

import builtins
from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from kd_dense.functional import without_autocast
from kd_dense.losses import (
    Decoders,
    QueryBoxLoss,
    QueryFeatureLoss,
    QueryMaskLoss,
    QueryPointLoss,
    TaughtQueries,
    query_box_loss,
    query_feature_loss,
    query_mask_loss,
    query_point_loss,
)
from kd_dense.losses.base import MMDET_EPS
from kd_dense.losses.queries.boxes import box_giou, match_boxes
from kd_dense.losses.queries.features import rate_queries
from kd_dense.losses.queries.matching import assign, take
from tests.losses.contract import LossContract
from tests.losses.ld_head import Packed, unpack

LAYERS, QUERIES, CLASSES = 2, 4, 3


def make_queries(images=3, seed=0, layers=LAYERS, queries=QUERIES, dtype=torch.float64):
    """Class logits of each layer, then boxes of each."""
    generator = torch.Generator().manual_seed(seed)
    size = (layers, images, queries)
    logits = 2 * torch.randn(*size, CLASSES, generator=generator, dtype=torch.float64)
    centre = 0.2 + 0.6 * torch.rand(*size, 2, generator=generator, dtype=torch.float64)
    sides = 0.1 + 0.5 * torch.rand(*size, 2, generator=generator, dtype=torch.float64)
    return [*logits.to(dtype), *torch.cat([centre, sides], -1).to(dtype)]


def slow_giou(a, b):
    """Of two boxes cx, cy, w, h."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = max(ax - aw / 2, bx - bw / 2), min(ax + aw / 2, bx + bw / 2)
    top, bottom = max(ay - ah / 2, by - bh / 2), min(ay + ah / 2, by + bh / 2)
    common = max(right - left, 0) * max(bottom - top, 0)
    union = aw * ah + bw * bh - common
    width = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    height = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    return common / union - (width * height - union) / (width * height)


def slow_clamped(box):
    x, y, w, h = box
    x1, y1, x2, y2 = (min(max(v, 0), 1) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def slow_bce(logits, targets, sigmoid=True):
    if not sigmoid:
        return -sum(t * torch.log_softmax(logits, 0)[k] for k, t in enumerate(targets))
    return sum(
        -t * torch.log(torch.sigmoid(x)) - (1 - t) * torch.log(1 - torch.sigmoid(x))
        for x, t in zip(logits, targets, strict=True)
    )


def slow_box_loss(
    student, teacher, classes=1.0, l1=5.0, giou=2.0, costs=(1.0, 5.0, 2.0),
    unmatched='background', sigmoid=True,
):  # fmt: skip
    """All parts, one pair after the other; every way to pair the queries is tried."""
    layers = len(student) // 2
    parts, count = [torch.zeros((), dtype=torch.float64)] * 3, 0
    for layer in range(layers):
        for n in range(len(student[0])):
            ours = [*zip(student[layer][n], student[layers + layer][n], strict=True)]
            theirs = []
            for x, box in zip(teacher[layer][n], teacher[layers + layer][n], strict=True):
                p = torch.sigmoid(x) if sigmoid else torch.softmax(x, 0)
                theirs.append((p.tolist(), slow_clamped(box.tolist())))

            def compared(pair, ours=ours, theirs=theirs):
                (x, box), (p, other) = ours[pair[0]], theirs[pair[1]]
                apart = sum(abs(a - b) for a, b in zip(box, other, strict=True))
                return slow_bce(x, p, sigmoid), apart, slow_giou(box, other)

            def cost(i, j, compared=compared):
                a, b, g = compared((i, j))
                return float(costs[0] * a + costs[1] * b - costs[2] * g)

            pairs = cheapest(len(ours), len(theirs), cost)
            few = len(pairs)
            count += few if layer == 0 else 0
            for pair in pairs:
                a, b, g = compared(pair)
                parts = [parts[0] + a, parts[1] + b, parts[2] + 1 - g]
            if unmatched == 'ignored':
                continue
            for i in {*range(len(ours))} - {i for i, _ in pairs}:
                target = [0.0] * len(ours[i][0])
                if unmatched == 'code':
                    target = [float(len(target))] * len(target)
                elif not sigmoid:
                    target[-1] = 1.0
                parts[0] = parts[0] + slow_bce(ours[i][0], target, sigmoid)
    weights = (classes, l1, giou)
    parts = [w * part / (count + MMDET_EPS) for w, part in zip(weights, parts, strict=True)]
    return dict(zip(('classes', 'l1', 'giou'), parts, strict=True))


class TestBoxes(Packed):
    loss = QueryBoxLoss(weight=3.0)
    zero_on_match = False
    maps = staticmethod(make_queries)

    def keywords(self, images):
        return {}

    def function(self, student, teacher):
        return self.call(query_box_loss, student, teacher)

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = make_queries(), make_queries()
        teacher[:LAYERS] = [x[..., :2] for x in teacher[:LAYERS]]
        with pytest.raises(ValueError, match=r'\(3, 4, 3\) and \(3, 4, 2\)'):
            query_box_loss(student, teacher)

    def test_autocast_changes_nothing(self):
        results = []
        for enabled in (False, True):
            student = [x.requires_grad_() for x in make_queries(dtype=torch.float32)]
            teacher = make_queries(seed=1, dtype=torch.float32)
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                value = sum(self.loss(student, teacher).values())
            results.append([value, *torch.autograd.grad(value, student)])
        for plain, autocast in zip(*results, strict=True):
            torch.testing.assert_close(autocast, plain)


@pytest.mark.parametrize('queries', [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize(
    'arguments',
    [
        {},
        dict(sigmoid=False),
        dict(unmatched='ignored', classes=2.0, l1=0.5, giou=3.0),
        dict(unmatched='code', costs=(0.3, 1.0, 4.0)),
    ],
)
def test_boxes_match_the_equations_pair_by_pair(queries, arguments):
    student = [x.requires_grad_() for x in make_queries(queries=queries[0])]
    teacher = make_queries(seed=1, queries=queries[1])
    found = query_box_loss(student, teacher, **arguments)
    expected = slow_box_loss(student, teacher, **arguments)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=0)
    ours, theirs = (
        torch.autograd.grad(sum(parts.values()), student) for parts in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_student_of_permuted_queries_is_right():
    teacher = make_queries()
    for boxes in teacher[LAYERS:]:
        boxes[..., 2:] *= 0.3  # within the image
    order = torch.tensor([2, 0, 3, 1])
    student = [x[:, order].clone().requires_grad_() for x in teacher]
    parts = query_box_loss(student, teacher)
    assert parts['l1'] < 1e-12
    assert parts['giou'].abs() < 1e-12
    for students, teachers in match_boxes(student, teacher):
        assert torch.equal(order[students], teachers)
    for grad in torch.autograd.grad(parts['classes'], student[:LAYERS]):
        assert grad.abs().max() < 1e-12  # the cross-entropy is that of the teacher to itself


def test_boxes_of_the_teacher_are_clamped_to_the_image():
    box = torch.tensor([[[1.0, 0.5, 0.5, 1.0]]])
    student = [torch.zeros(1, 1, 3), torch.tensor([[[0.875, 0.5, 0.25, 1.0]]])]
    parts = query_box_loss(student, [torch.zeros(1, 1, 3), box])
    assert parts['l1'] == parts['giou'] == 0


@pytest.mark.parametrize(
    ('ours', 'theirs', 'pairs'), [(2, 3, [1, 2]), (3, 2, [0, 1, 1]), (1, 3, [2]), (2, 2, [0, 1])]
)
def test_layers_of_decoders_of_other_depths(ours, theirs, pairs):
    student, teacher = make_queries(layers=ours), make_queries(layers=theirs, seed=1)
    chosen = [teacher[i] for i in pairs] + [teacher[theirs + i] for i in pairs]
    assert query_box_loss(student, teacher) == query_box_loss(student, chosen)


@pytest.mark.parametrize(
    'maps',
    [
        [torch.zeros(1, 4, 3)],
        [],
        [torch.zeros(1, 4, 3), torch.zeros(1, 4, 5)],
        [torch.zeros(1, 4, 3), torch.zeros(1, 5, 4)],
        [torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8)],
    ],
)
def test_what_is_no_prediction_of_queries_is_refused(maps):
    with pytest.raises(ValueError, match=r'class logits \(N, Q, K\), then boxes \(N, Q, 4\), got'):
        query_box_loss(maps, make_queries())
    with pytest.raises(ValueError, match='expects of the teacher'):
        query_box_loss(make_queries(), maps)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='finite giou >= 0'):
        QueryBoxLoss(giou=-1.0)
    with pytest.raises(ValueError, match='three costs'):
        QueryBoxLoss(costs=(1.0, 2.0))
    with pytest.raises(ValueError, match='finite cost >= 0'):
        QueryBoxLoss(costs=(1.0, 2.0, -1.0))
    with pytest.raises(ValueError, match=r"unmatched to be one of .*'nothing'"):
        QueryBoxLoss(unmatched='nothing')


def test_module_passes_every_argument_on():
    student, teacher = make_queries(), make_queries(seed=1, queries=3)
    default = query_box_loss(student, teacher)
    changes = dict(
        classes=2.0, l1=1.0, giou=1.0, costs=(9.0, 0.0, 0.0), unmatched='ignored', sigmoid=False
    )
    for name, value in changes.items():
        found = QueryBoxLoss(**{name: value})(student, teacher)
        assert found == query_box_loss(student, teacher, **{name: value})
        assert found != default, name


def test_pairing_survives_what_is_no_number():
    (pair,) = assign([torch.full((1, 2, 3), float('nan'))])
    assert pair[0].tolist() == [[0, 1]]
    assert len({*pair[1].flatten().tolist()}) == 2
    parts = query_box_loss([x * float('nan') for x in make_queries()], make_queries())
    assert all(value.isnan() for value in parts.values())  # and no error of SciPy


def test_a_thousand_queries_and_one():
    student, teacher = make_queries(1, queries=1000, layers=1), make_queries(1, 1, 1, queries=1)
    ((students, teachers),) = match_boxes(student, teacher)
    assert students.shape == teachers.shape == (1, 1)
    assert all(value.isfinite() for value in query_box_loss(student, teacher).values())


def test_without_scipy_the_remedy_is_said(monkeypatch):
    plain = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith('scipy'):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match='pip install scipy'):
        query_box_loss(make_queries(), make_queries())


def test_degenerate_boxes_have_finite_gradients():
    boxes = torch.zeros(1, 2, 4, dtype=torch.float64)
    boxes[0, 1] = torch.tensor([0.5, 0.5, 1e-9, 0.0])
    student = boxes.clone().requires_grad_()
    value = (1 - box_giou(student, boxes.flip(1))).sum()
    (grad,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert grad.isfinite().all()


def test_some_queries_are_taken_of_masks_too():
    masks = torch.arange(24.0).view(1, 3, 2, 4)
    assert torch.equal(take(masks, torch.tensor([[2, 0]])), masks[:, [2, 0]])


def make_masks(images=3, seed=0, layers=LAYERS, queries=QUERIES, size=(3, 5)):
    """Class logits of each layer, then mask logits of each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, queries)
    logits = 2 * torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64)
    masks = 3 * torch.randn(*shape, *size, generator=generator, dtype=torch.float64)
    return [*logits, *masks]


def slow_mask_loss(
    student, teacher, classes=2.0, mask=5.0, dice=5.0, costs=(2.0, 5.0, 5.0),
    unmatched='background', sigmoid=False,
):  # fmt: skip
    """All parts, one pair after the other; every way to pair the queries is tried."""
    layers = len(student) // 2
    parts, count = [torch.zeros((), dtype=torch.float64)] * 3, 0
    for layer in range(layers):
        for n in range(len(student[0])):
            ours, theirs = (
                [*zip(side[layer][n], side[layers + layer][n], strict=True)]
                for side in (student, teacher)
            )

            def compared(i, j, ours=ours, theirs=theirs):
                (x, z), (y, m) = ours[i], theirs[j]
                p = (y.sigmoid() if sigmoid else y.softmax(0)).tolist()
                m, s = m.sigmoid().flatten(), z.sigmoid().flatten()
                apart = -(m * s.log() + (1 - m) * (1 - s).log()).mean()
                overlap = 1 - (2 * (s * m).sum() + 1) / (s.sum() + m.sum() + 1)
                return slow_bce(x, p, sigmoid), apart, overlap

            pairs = cheapest(
                len(ours),
                len(theirs),
                lambda i, j, compared=compared: sum(
                    c * float(v) for c, v in zip(costs, compared(i, j), strict=True)
                ),
            )
            count += len(pairs) if layer == 0 else 0
            for i, j in pairs:
                parts = [a + b for a, b in zip(parts, compared(i, j), strict=True)]
            if unmatched == 'ignored':
                continue
            for i in {*range(len(ours))} - {i for i, _ in pairs}:
                target = [0.0] * CLASSES
                if not sigmoid:
                    target[-1] = 1.0
                parts[0] = parts[0] + slow_bce(ours[i][0], target, sigmoid)
    weights = (classes, mask, dice)
    parts = [w * part / (count + MMDET_EPS) for w, part in zip(weights, parts, strict=True)]
    return dict(zip(('classes', 'mask', 'dice'), parts, strict=True))


def cheapest(rows, columns, cost):
    """The pairs of rows and columns that cost least together, of all that there are."""
    few = min(rows, columns)
    table = [[cost(i, j) for j in range(columns)] for i in range(rows)]
    every = (
        [*zip(order, range(few), strict=False)]
        if rows >= columns
        else [*zip(range(few), order, strict=False)]
        for order in permutations(range(max(rows, columns)), few)
    )
    return min(every, key=lambda pairs: sum(table[i][j] for i, j in pairs))


class TestMasks(Packed):
    loss = QueryMaskLoss(weight=3.0)
    zero_on_match = False
    maps = staticmethod(make_masks)

    def keywords(self, images):
        return {}

    def function(self, student, teacher):
        return self.call(query_mask_loss, student, teacher)

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = make_masks(), make_masks()
        teacher[:LAYERS] = [x[..., :2] for x in teacher[:LAYERS]]
        with pytest.raises(ValueError, match=r'\(3, 4, 3\) and \(3, 4, 2\)'):
            query_mask_loss(student, teacher)

    def test_autocast_changes_nothing(self):
        results = []
        for enabled in (False, True):
            student = [x.float().requires_grad_() for x in make_masks()]
            teacher = [x.float() for x in make_masks(seed=1)]
            with (
                torch.autocast('cpu', torch.bfloat16, enabled=enabled),
                without_autocast(student[0]),
            ):
                value = sum(self.loss(student, teacher).values())
            results.append([value, *torch.autograd.grad(value, student)])
        for plain, autocast in zip(*results, strict=True):
            torch.testing.assert_close(autocast, plain)


@pytest.mark.parametrize('queries', [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize(
    'arguments',
    [{}, dict(sigmoid=True), dict(unmatched='ignored', mask=1.0, costs=(1.0, 0.0, 9.0))],
)
def test_masks_match_the_equations_pair_by_pair(queries, arguments):
    student = [x.requires_grad_() for x in make_masks(queries=queries[0])]
    teacher = make_masks(seed=1, queries=queries[1])
    found = query_mask_loss(student, teacher, **arguments)
    expected = slow_mask_loss(student, teacher, **arguments)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=0)
    ours, theirs = (
        torch.autograd.grad(sum(parts.values()), student) for parts in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_masks_are_compared_at_some_points():
    student, teacher = make_masks(size=(20, 30)), make_masks(size=(20, 30), seed=1)
    torch.manual_seed(0)
    few = query_mask_loss(student, teacher, points=300)
    torch.manual_seed(0)
    assert query_mask_loss(student, teacher, points=300) == few
    whole = query_mask_loss(student, teacher)  # of no more than there are
    assert whole == query_mask_loss(student, teacher, points=None)
    assert few != whole
    assert float(few['mask']) == pytest.approx(float(whole['mask']), rel=0.1)


def test_masks_of_another_size_are_resized():
    student, teacher = make_masks(size=(4, 6)), make_masks(seed=1, size=(2, 3))
    resized = [F.interpolate(x, (4, 6), mode='bilinear') for x in teacher[LAYERS:]]
    assert query_mask_loss(student, teacher) == query_mask_loss(
        student, [*teacher[:LAYERS], *resized]
    )


def test_bad_arguments_of_masks_are_refused():
    with pytest.raises(ValueError, match=r"or 'ignored', got 'code'"):
        QueryMaskLoss(unmatched='code')
    with pytest.raises(ValueError, match='points as an int >= 1, got points=0'):
        QueryMaskLoss(points=0)
    with pytest.raises(ValueError, match=r'then masks \(N, Q, H, W\), got'):
        query_mask_loss(make_queries(), make_masks())
    with pytest.raises(ValueError, match=r'then boxes \(N, Q, 4\), got'):
        query_box_loss(make_masks(), make_queries())


def make_taught(images=3, channels=4, layers=2, queries=5):
    """Queries of a teacher, the same in all images."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(layers, 1, queries, channels, generator=generator, dtype=torch.float64)
    quality = torch.rand(layers, 1, queries, generator=generator, dtype=torch.float64)
    return TaughtQueries(
        [x.expand(images, -1, -1) for x in states], [x.expand(images, -1) for x in quality]
    )


class TestFeatures(LossContract):
    loss = QueryFeatureLoss(weight=3.0)
    function = staticmethod(query_feature_loss)

    def extra(self, images=3):
        return {'taught_queries': make_taught(images)}

    def value(self, student, teacher):
        return self.loss(student, teacher, **self.extra(len(student)))

    def test_matches_the_equations_query_by_query(self):
        student, teacher = self.example()
        taught = make_taught()
        expected = 0.0
        for states, quality in zip(*taught, strict=True):
            for n in range(len(student)):
                t = teacher[n].detach()
                mask = torch.zeros(5, 6, dtype=torch.float64)
                for y in range(5):
                    for x in range(6):
                        for q, w in zip(states[n], quality[n], strict=True):
                            at = t[:, y, x]
                            mask[y, x] += w * (q @ at) / q.norm() / at.norm()
                mask = mask.clamp(min=0.01)
                mask = mask / mask.max()
                expected += (mask * student[n] - mask * t).square().sum() / student.numel()
        torch.testing.assert_close(
            query_feature_loss(student, teacher, taught), expected, rtol=1e-11, atol=0
        )

    def test_names_what_is_not_as_wide(self):
        with pytest.raises(ValueError, match=r'\(3, 5, 6\) and \(3, 4, 5, 6\).*tap its neck'):
            query_feature_loss(*self.example(), make_taught(channels=6))


@pytest.mark.parametrize('sigmoid', [True, False])
def test_queries_are_rated_by_class_and_overlap(sigmoid):
    layers = make_queries(images=2)
    logits, boxes = layers[:LAYERS], layers[LAYERS:]
    states = [torch.randn(2, QUERIES, 6) for _ in range(LAYERS)]
    objects = [torch.tensor([[10.0, 4.0, 30.0, 20.0], [0.0, 0.0, 8.0, 9.0]]), torch.zeros(0, 4)]
    shapes = [(24, 40), (20, 48)]
    count = 5
    found = rate_queries(states, logits, boxes, objects, shapes, count, sigmoid)
    for layer in range(LAYERS):
        for n in range(2):
            scores = []
            for q in range(QUERIES):
                x = logits[layer][n, q]
                p = x.sigmoid() if sigmoid else x.softmax(0)[:-1]
                scores += [(float(value), q) for value in p]
            scores.sort(reverse=True)
            for at, (score, q) in enumerate(scores[:count]):
                x, y, w, h = boxes[layer][n, q].tolist()
                height, width = shapes[n]
                box = [v * s for v, s in zip((x, y, w, h), (width, height) * 2, strict=True)]
                best = [slow_iou(box, one) for one in objects[n].tolist()]
                expected = score * (max(best) if best else 1)
                assert float(found.quality[layer][n, at]) == pytest.approx(expected, abs=1e-6)
                assert torch.equal(found.states[layer][n, at], states[layer][n, q])


def slow_iou(box, other):
    """Of cx, cy, w, h and x1, y1, x2, y2."""
    (x, y, w, h), (x1, y1, x2, y2) = box, other
    width = max(min(x + w / 2, x2) - max(x - w / 2, x1), 0)
    height = max(min(y + h / 2, y2) - max(y - h / 2, y1), 0)
    return width * height / (w * h + (x2 - x1) * (y2 - y1) - width * height)


@pytest.mark.parametrize('objects', [0, 1, 1000])
def test_any_number_of_objects(objects):
    layers = make_queries(images=2)
    corners = 20 * torch.rand(objects, 2)
    boxes = torch.cat([corners, corners + 5], 1)
    states = [torch.randn(2, QUERIES, 6) for _ in range(LAYERS)]
    found = rate_queries(
        states, layers[:LAYERS], layers[LAYERS:], [boxes, boxes[:0]], [(24, 40)] * 2
    )
    for quality in found.quality:
        assert quality.shape == (2, QUERIES * CLASSES)  # there are no more
        assert ((quality >= 0) & (quality <= 1)).all()
        assert (quality[1] > 0).all()


def points_of(maps):
    """Decoders that predict these, whatever the boxes."""
    student, teacher = maps
    boxes = torch.zeros(len(student[0]), student[0].shape[1], 4, dtype=student[0].dtype)
    return Decoders(lambda _: student, lambda _: teacher, boxes)


class TestPoints(Packed):
    loss = QueryPointLoss(weight=3.0)
    maps = staticmethod(make_queries)

    def call(self, loss, student, teacher):
        maps = [unpack(x, self.maps()) for x in (student, teacher)]
        given = dict(decoders=points_of(maps)) if isinstance(loss, QueryPointLoss) else {}
        return sum(loss(*maps, **given).values())

    def function(self, student, teacher):
        return self.call(query_point_loss, student, teacher)

    def test_is_a_finite_scalar_or_its_named_parts(self):
        maps = [unpack(x, self.maps()) for x in self.example()]
        result = self.loss(*maps, decoders=points_of(maps))
        assert self.loss.needs == ('decoders',)
        assert tuple(result) == self.loss.parts
        assert all(value.shape == () and value.isfinite() for value in result.values())

    def test_zero_when_student_equals_teacher(self):
        layers = make_queries(layers=1)
        for value in query_point_loss(layers, layers).values():
            assert abs(float(value)) < 1e-4  # an epsilon of areas

    def test_two_half_batches_average_to_the_whole(self):
        """Of classes; boxes are means over all points of the batch, by their weights."""
        student, teacher = make_queries(2), make_queries(2, seed=1)
        halves = [
            query_point_loss([x[i : i + 1] for x in student], [x[i : i + 1] for x in teacher])
            for i in range(2)
        ]
        whole = query_point_loss(student, teacher)
        torch.testing.assert_close(sum(h['classes'] for h in halves) / 2, whole['classes'])
        weights = [x.sigmoid().amax(-1).sum() for x in teacher[LAYERS - 1]]
        for name in ('l1', 'giou'):
            both = sum(w * h[name] for w, h in zip(weights, halves, strict=True)) / sum(weights)
            torch.testing.assert_close(both, whole[name])

    def test_names_both_shapes_when_they_differ(self):
        with pytest.raises(ValueError, match=r'same points.*\(3, 4, 3\).*\(3, 5, 3\)'):
            query_point_loss(make_queries(), make_queries(queries=5))


def test_points_match_the_equations_point_by_point():
    student, teacher = make_queries(), make_queries(seed=1, layers=3)
    found = query_point_loss(student, teacher, 2.0, 3.0, 4.0, temperature=5.0)
    last, boxes = teacher[2], teacher[5]
    classes = l1 = giou = total = 0.0
    for n in range(3):
        for q in range(QUERIES):
            weight = float(last[n, q].sigmoid().max())
            total += weight
            p = (last[n, q] / 5).softmax(0)
            for layer in range(LAYERS):
                log_q = (student[layer][n, q] / 5).log_softmax(0)
                box, other = student[LAYERS + layer][n, q].tolist(), boxes[n, q].tolist()
                classes += weight * 25 / CLASSES * float((p * (p.log() - log_q)).sum())
                l1 += weight * sum(abs(a - b) for a, b in zip(box, other, strict=True)) / 4
                giou += weight * (1 - slow_giou(box, other))
    assert float(found['classes']) == pytest.approx(2 * classes * 8 / 3)
    assert float(found['l1']) == pytest.approx(3 * l1 / total)
    assert float(found['giou']) == pytest.approx(4 * giou / total, rel=1e-4)


def test_a_single_class_is_one_against_none():
    student, teacher = (
        [x[..., :1] for x in maps[:LAYERS]] + maps[LAYERS:]
        for maps in (make_queries(), make_queries(seed=1))
    )
    assert query_point_loss(student, teacher)['classes'] > 0


@pytest.mark.parametrize('points', ['teacher', 'random'])
def test_both_decoders_are_given_the_same_points(points):
    seen = []
    own = torch.randn(2, 6, 4)

    def decode(boxes):
        seen.append(boxes)
        return make_queries(2, queries=boxes.shape[1], dtype=torch.float32)

    QueryPointLoss(points=points, count=5)([], [], Decoders(decode, decode, own))
    QueryPointLoss(points=points, count=5)([], [], Decoders(decode, decode, own))
    student, teacher, again, _ = seen
    assert torch.equal(student, teacher)
    assert student.shape == (2, 6 if points == 'teacher' else 5, 4)
    assert torch.equal(student, own) == (points == 'teacher')
    assert torch.equal(student, again) == (points == 'teacher')
    assert torch.equal(student[0], student[1]) == (points == 'random')


def test_bad_arguments_of_points_are_refused():
    with pytest.raises(ValueError, match=r"points to be one of .*'own'"):
        QueryPointLoss(points='own')
    with pytest.raises(ValueError, match='count as an int >= 1'):
        QueryPointLoss(count=0)
    with pytest.raises(ValueError, match='temperature > 0'):
        QueryPointLoss(temperature=0)
    with pytest.raises(ValueError, match='finite l1 >= 0'):
        QueryPointLoss(l1=-1)


def test_packing_keeps_what_is_packed():
    maps = make_queries()
    again = unpack(torch.cat([x.flatten(1) for x in maps], 1), maps)
    assert all(torch.equal(a, b) for a, b in zip(again, maps, strict=True))
