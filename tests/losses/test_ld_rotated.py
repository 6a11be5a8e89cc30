"""LD of rotated boxes: beside the equations, anchor by anchor, and the authors' steps."""

import math

import pytest
import torch

from kd_dense.functional import ranks
from kd_dense.losses import LDLoss, RotatedLDLoss, ld_loss, rotated_ld_loss
from kd_dense.losses.ld import ld
from kd_dense.losses.ld.imitation import general_instances
from kd_dense.losses.ld.regions import nearby_region
from tests.losses.ld_head import (
    BINS,
    BOXES,
    CLASSES,
    SHAPES,
    Packed,
    make_maps,
    make_targets,
    prior_logits,
)
from tests.losses.test_ld import slow_kl
from tests.losses.test_ld_regions import slow_overlaps

ANGLES = (0.4, -1.2)


def turned(boxes=BOXES):
    """The same boxes, turned about their centres."""
    found = []
    for some in boxes:
        angles = torch.tensor(ANGLES[: len(some)], dtype=some.dtype)[:, None]
        centre, size = (some[:, :2] + some[:, 2:]) / 2, some[:, 2:] - some[:, :2]
        found.append(torch.cat([centre, size * torch.tensor([1.0, 0.5]), angles], 1))
    return found


def hull(box):
    """The upright box around a rotated one, by its corners."""
    x, y, w, h, angle = box
    corners = [
        (
            x + a * w / 2 * math.cos(angle) - b * h / 2 * math.sin(angle),
            y + a * w / 2 * math.sin(angle) + b * h / 2 * math.cos(angle),
        )
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def rotated_targets(boxes=BOXES, per_position=1, dtype=torch.float64):
    targets = make_targets(boxes, per_position, dtype)
    rotated = [x.to(dtype) for x in turned(boxes)]
    upright = [torch.tensor([hull(b) for b in x.tolist()], dtype=dtype) for x in rotated]
    return targets._replace(rotated=rotated, boxes=[x.view(-1, 4) for x in upright])


def rotated_maps(images=3, per_position=1, seed=0, dtype=torch.float64):
    """As of a head with a distribution for each of five numbers."""
    generator = torch.Generator().manual_seed(seed)
    channels = [per_position * CLASSES] * 2 + [per_position * 5 * BINS] * 2
    return [
        2 * torch.randn(images, c, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for c, shape in zip(channels, SHAPES * 2, strict=True)
    ]


def slow_region(levels, valid, boxes, topk):
    """The region of one image, anchor by anchor, from upright boxes given as lists."""
    anchors = [a for level in levels for a in level.tolist()]
    valid = [v for level in valid for v in level.tolist()]
    region = [0.0] * len(anchors)
    for box in boxes:
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
        for index, anchor in enumerate(anchors):
            iou = slow_overlaps(anchor, box)[0]
            if valid[index] and iou >= 0.25 * (mean + math.sqrt(variance)):
                region[index] = max(region[index], iou)
    return region


def slow(student, teacher, targets, per_position=1, topk=9, around='hull', **changes):
    """Both parts, one anchor after the other."""
    s = dict(ld_weight=10.0, kd_weight=20.0, temperature=5.0, kd_temperature=5.0) | changes
    levels = len(targets.labels)
    parts = dict.fromkeys(('ld', 'kd'), torch.zeros((), dtype=torch.float64))
    regions = []
    for n, boxes in enumerate(targets.rotated):
        if around == 'hull':
            upright = [hull(box) for box in boxes.tolist()]
        else:
            upright = [
                [x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h, _ in boxes.tolist()
            ]
        valid = [v[n] for v in targets.valid]
        regions.append(slow_region(targets.priors, valid, upright, topk))
    for level in range(levels):
        start = sum(targets.sizes[:level])
        found = {'ld': [], 'kd': []}
        for n in range(len(targets.rotated)):
            for prior in range(targets.sizes[level]):
                weight = regions[n][start + prior]
                if not weight > 0:
                    continue
                ours, our_box, theirs, their_box = (
                    prior_logits(x[i], per_position, n, prior)
                    for x in (student, teacher)
                    for i in (level, levels + level)
                )
                numbers = zip(our_box.view(5, -1), their_box.view(5, -1), strict=True)
                box = sum(slow_kl(a, b, s['temperature']) for a, b in numbers)
                found['ld'].append(weight * box)
                found['kd'].append(weight * slow_kl(ours, theirs, s['kd_temperature']))
        for name, values in found.items():
            if values:
                parts[name] = parts[name] + s[f'{name}_weight'] * sum(values) / len(values)
    return parts


class TestRotatedLD(Packed):
    loss = RotatedLDLoss(weight=3.0)
    maps = staticmethod(rotated_maps)

    def function(self, student, teacher):
        return self.call(rotated_ld_loss, student, teacher)

    def keywords(self, images):
        targets = rotated_targets([BOXES[0]], dtype=torch.float32)
        repeated = {
            name: [x.expand(images, -1) for x in getattr(targets, name)]
            for name in ('labels', 'label_weights', 'valid')
        }
        boxes = dict(boxes=targets.boxes * images, rotated=targets.rotated * images)
        return {'head_targets': targets._replace(**boxes, **repeated)}

    def test_gradient_is_right(self):
        student, teacher = self.example()
        teacher = teacher.detach()  # fast: along random directions, not for each of 4,536 logits
        assert torch.autograd.gradcheck(
            lambda x: self.value(x, teacher), (student,), fast_mode=True
        )

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = rotated_maps(), rotated_maps()
        teacher[2] = teacher[2][:, :-5]
        with pytest.raises(ValueError, match=r'level 0: .*\(3, 25, 6, 7\).*\(3, 20, 6, 7\)'):
            rotated_ld_loss(student, teacher, rotated_targets())


@pytest.mark.parametrize('around', ['hull', 'unturned'])
@pytest.mark.parametrize('per_position', [1, 3])
def test_matches_the_equations_anchor_by_anchor(around, per_position):
    student, teacher = (rotated_maps(per_position=per_position, seed=s) for s in (0, 1))
    student = [x.requires_grad_() for x in student]
    targets = rotated_targets(per_position=per_position)
    changes = dict(ld_weight=3.0, kd_weight=2.0, temperature=4.0, kd_temperature=3.0, topk=5)
    found = rotated_ld_loss(student, teacher, targets, around=around, **changes)
    expected = slow(student, teacher, targets, per_position, around=around, **changes)
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=0)
    ours = torch.autograd.grad(sum(found.values()), student)
    theirs = torch.autograd.grad(sum(expected.values()), student)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_what_stands_for_a_box_matters():
    maps, targets = (rotated_maps(), rotated_maps(seed=1)), rotated_targets()
    parts = {
        around: rotated_ld_loss(*maps, targets, around=around) for around in ('hull', 'unturned')
    }
    assert parts['hull'] != parts['unturned']
    straight = [torch.cat([b[:, :4], torch.zeros_like(b[:, :1])], 1) for b in targets.rotated]
    upright = [torch.tensor([hull(b) for b in x.tolist()]).view(-1, 4) for x in straight]
    same = targets._replace(rotated=straight, boxes=[x.double() for x in upright])
    parts = {
        around: rotated_ld_loss(*maps, same, around=around) for around in ('hull', 'unturned')
    }
    for name, value in parts['hull'].items():
        torch.testing.assert_close(parts['unturned'][name], value)


def test_the_region_holds_the_positives_and_what_is_around_them():
    """Unlike the VLR it has no upper limit."""
    targets = rotated_targets()
    valid = torch.cat(targets.valid, 1)
    region = nearby_region(targets.priors, valid, targets.boxes)
    best = [slow_region(targets.priors, [v[0] for v in targets.valid], [b], 9) for b in
            targets.boxes[0].tolist()]  # fmt: skip
    for one in best:
        index = max(range(len(one)), key=one.__getitem__)
        assert region[0, index] >= one[index] > 0
    assert not region[1].any()  # no box
    assert not (region[~valid] > 0).any()


def test_module_passes_every_argument_on():
    changes = dict(
        ld_weight=1.0,
        kd_weight=2.0,
        temperature=3.0,
        kd_temperature=2.0,
        topk=3,
        around='unturned',
    )
    student, teacher, targets = rotated_maps(), rotated_maps(seed=1), rotated_targets()
    default = rotated_ld_loss(student, teacher, targets)
    for name, value in changes.items():
        found = RotatedLDLoss(**{name: value})(student, teacher, head_targets=targets)
        assert found == rotated_ld_loss(student, teacher, targets, **{name: value})
        assert found != default, name


def test_processes_average_to_one_that_holds_the_whole_batch(monkeypatch):
    student, teacher, targets = rotated_maps(), rotated_maps(seed=1), rotated_targets()
    student, teacher = [x[[0, 2]] for x in student], [x[[0, 2]] for x in teacher]

    def of(images):
        split = {k: [x[images] for x in getattr(targets, k)] for k in
                 ('labels', 'label_weights', 'valid')}  # fmt: skip
        boxes = {k: [getattr(targets, k)[i] for i in images] for k in ('boxes', 'rotated')}
        return targets._replace(**boxes, **split)

    counts = []
    monkeypatch.setattr(ranks, 'mean_over_ranks', lambda c: counts.append(c) or c)
    whole = rotated_ld_loss(student, teacher, of([0, 2]))
    halves = []
    for image, index in ((0, 0), (2, 1)):
        calls = iter(counts)  # with two processes the mean count is half the count of both
        monkeypatch.setattr(ranks, 'mean_over_ranks', lambda c, calls=calls: next(calls) / 2)
        maps = ([x[index : index + 1] for x in m] for m in (student, teacher))
        halves.append(rotated_ld_loss(*maps, of([image])))
    assert len(counts) == 2
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)


@pytest.mark.parametrize('boxes', [[0], [0, 0]])
def test_images_without_boxes_give_zero_in_touch_with_the_graph(boxes):
    targets = rotated_targets([torch.zeros(n, 4, dtype=torch.float64) for n in boxes])
    student = [x.requires_grad_() for x in rotated_maps(len(boxes))]
    parts = rotated_ld_loss(student, rotated_maps(len(boxes), seed=1), targets)
    assert all(part == 0 for part in parts.values())
    sum(parts.values()).backward()
    assert all(x.grad is not None and not x.grad.any() for x in student)


def test_one_box_and_a_thousand():
    one = torch.tensor([[3.3, 4.1, 36.2, 33.7]], dtype=torch.float64)
    maps = rotated_maps(1), rotated_maps(1, seed=1)
    targets = rotated_targets([one])
    rotated = [x.repeat(1000, 1) for x in targets.rotated]
    many = targets._replace(boxes=[targets.boxes[0].repeat(1000, 1)], rotated=rotated)
    for name, value in rotated_ld_loss(*maps, targets).items():
        assert value > 0
        torch.testing.assert_close(rotated_ld_loss(*maps, many)[name], value)


def test_a_part_of_weight_zero_costs_nothing(monkeypatch):
    student = [x.requires_grad_() for x in rotated_maps()]
    teacher, targets = rotated_maps(seed=1), rotated_targets()
    compared = []
    monkeypatch.setattr(ld, 'mean_kl', lambda s, *a, **k: compared.append(s.shape[3]) or s.sum(3))
    for changes, expected in (
        (dict(kd_weight=0), [BINS] * 2),
        (dict(ld_weight=0), [CLASSES] * 2),
        (dict(kd_weight=0, ld_weight=0), []),
    ):
        compared.clear()
        parts = rotated_ld_loss(student, teacher, targets, **changes)
        assert compared == expected
        assert all(part.requires_grad for part in parts.values())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(ld_weight=-1), 'ld_weight >= 0, got ld_weight=-1'),
        (dict(kd_weight=math.nan), 'finite kd_weight'),
        (dict(temperature=0), 'temperature > 0'),
        (dict(kd_temperature=-1), 'temperature > 0'),
        (dict(topk=0), 'topk as an int >= 1, got topk=0'),
        (dict(around='box'), r"around to be one of \('hull', 'unturned'\), got 'box'"),
    ],
)
def test_rejects_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        RotatedLDLoss(**arguments)
    with pytest.raises(ValueError, match=message):
        rotated_ld_loss(rotated_maps(), rotated_maps(), rotated_targets(), **arguments)


def test_a_single_class_has_no_distribution_over_the_classes():
    maps = [[x[:, :1] if i < 2 else x for i, x in enumerate(rotated_maps(seed=s))] for s in (0, 1)]
    targets = rotated_targets()
    labels = [(x == CLASSES).long() for x in targets.labels]
    targets = targets._replace(labels=labels, num_classes=1)
    with pytest.raises(ValueError, match=r'which is 1 for a single class .* set it to 0'):
        rotated_ld_loss(*maps, targets)
    assert rotated_ld_loss(*maps, targets, kd_weight=0)['ld'] > 0


def test_upright_boxes():
    """Of another detector: there is nothing that could be unturned."""
    maps, targets = (make_maps(), make_maps(seed=1)), make_targets()
    assert rotated_ld_loss(*maps, targets)['ld'] > 0
    with pytest.raises(ValueError, match=r"around='unturned' expects rotated boxes"):
        rotated_ld_loss(*maps, targets, around='unturned')


def test_points_have_no_overlap():
    targets = rotated_targets()
    points = [(p[:, :2] + p[:, 2:]) / 2 for p in targets.priors]
    with pytest.raises(ValueError, match='nearby_region expects anchor boxes'):
        rotated_ld_loss(rotated_maps(), rotated_maps(), targets._replace(priors=points))


class TestPlainLD:
    """The loss of upright boxes, on a head with five distributions."""

    def test_sums_over_all_five(self):
        student, teacher, targets = rotated_maps(), rotated_maps(seed=1), rotated_targets()
        parts = ld_loss(student, teacher, targets)
        changed = [*student[:2], *(x.clone() for x in student[2:])]
        for x in changed[2:]:  # the last of five
            x[:, -BINS:] = 0
        again = ld_loss(changed, teacher, targets)
        assert again['main'] != parts['main']
        assert again['vlr'] != parts['vlr']
        assert again['kd'] == parts['kd']
        assert LDLoss(region='inside')(student, teacher, targets)['vlr'] > 0

    def test_says_how_many_channels_it_expects(self):
        student, targets = make_maps(), rotated_targets()
        student[2] = student[2][:, :-1]
        with pytest.raises(ValueError, match=r'of 5 \* \(n \+ 1\) channels'):
            ld_loss(student, student, targets)

    def test_general_instances_are_of_upright_boxes(self):
        maps = rotated_maps(), rotated_maps(seed=1)
        with pytest.raises(ValueError, match='upright boxes, and these are rotated'):
            general_instances(*maps, rotated_targets())
