import math

import pytest
import torch
from torch.nn import functional as F

from kd_dense.functional import ranks
from kd_dense.losses import LDLoss, ld_loss
from kd_dense.losses.ld import ld
from kd_dense.losses.ld.regions import vlr_region
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
from tests.losses.test_ld_regions import slow_inside, slow_vlr

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


def slow_kl(student, teacher, temperature):
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum()
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum()
    return temperature**2 * sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True)) / len(p)


def slow_ld(student, teacher, targets, per_position=1, **changes):
    """All parts, one prior after the other."""
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
    for level in range(levels):
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
        with pytest.raises(ValueError, match=r'level 0: .*\(3, 20, 6, 7\).*\(3, 16, 6, 7\)'):
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
    monkeypatch.setattr(ranks, 'mean_over_ranks', lambda c: counts.append(c) or c)
    ld_loss(student, teacher, of([0, 2]), **ALL_PARTS)
    halves = []
    for image, index in ((0, 0), (2, 1)):
        calls = iter(counts)  # with two processes the mean count is half the count of both
        monkeypatch.setattr(ranks, 'mean_over_ranks', lambda c, calls=calls: next(calls) / 2)
        maps = ([x[index : index + 1] for x in m] for m in (student, teacher))
        halves.append(ld_loss(*maps, of([image]), **ALL_PARTS))
    assert len(counts) == 2
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)


def test_a_mean_count_may_be_below_one(monkeypatch):
    monkeypatch.setattr(ranks, 'mean_over_ranks', lambda counts: counts / 8)
    values, members = torch.tensor([[3.0, 5.0, 7.0]]), torch.tensor([[True, True, False]])
    assert ld.level_means(values, members, [2, 1]).sum() == 8 * 4


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
        (dict(topk=0), 'topk as an int >= 1, got topk=0'),
    ],
)
def test_rejects_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        LDLoss(**arguments)
    with pytest.raises(ValueError, match=message):
        ld_loss(make_maps(), make_maps(), make_targets(), **arguments)


def test_a_single_class_has_no_distribution_over_the_classes():
    student, teacher = (
        [x[:, :1] if i < 2 else x.requires_grad_() for i, x in enumerate(make_maps(seed=seed))]
        for seed in (0, 1)
    )
    targets = make_targets()
    labels = [(x == CLASSES).long() for x in targets.labels]  # 0, or 1 for background
    targets = targets._replace(labels=labels, num_classes=1)
    for weights in ({}, dict(kd_weight=0, kd_vlr_weight=1.0), dict(main_weight=0, vlr_weight=0)):
        with pytest.raises(ValueError, match=r'which is 1 for a single class .* set both to 0'):
            ld_loss(student, teacher, targets, **weights)
        with pytest.raises(ValueError, match=r'which is 1 for a single class .* set both to 0'):
            LDLoss(**weights)(student, teacher, targets)
    parts = ld_loss(student, teacher, targets, kd_weight=0)
    assert parts['main'] > 0
    assert parts['vlr'] > 0
    assert parts['kd'] == parts['kd_vlr'] == 0


def test_rejects_maps_that_do_not_fit_the_targets():
    student, targets = make_maps(), make_targets()
    with pytest.raises(ValueError, match='student yields 3 maps, expected 2 kinds on 2 levels'):
        ld_loss(student[:3], student, targets)
    with pytest.raises(ValueError, match='teacher yields 3 maps'):
        ld_loss(student, student[:3], targets)
    with pytest.raises(ValueError, match=r'level 0: expected class logits .*K \* 4,'):
        ld_loss(student, student, targets._replace(num_classes=4))
    with pytest.raises(ValueError, match=r'level 0: .*N = 2, .* got'):
        ld_loss(student, student, targets._replace(boxes=BOXES[:2]))
    with pytest.raises(ValueError, match=r'level 1: .*42 priors'):
        ld_loss(student, student, targets._replace(labels=[targets.labels[0]] * 2))
    deltas = [*student[:2], *(x[:, :4] for x in student[2:])]
    with pytest.raises(ValueError, match='does each head predict distributions'):
        ld_loss(deltas, deltas, targets)


def test_agrees_with_the_divergence_of_torch():
    student, teacher = torch.randn(2, 6, 17, dtype=torch.float64)
    expected = F.kl_div((student / 10).log_softmax(1), (teacher / 10).softmax(1), reduction='none')
    torch.testing.assert_close(ld.mean_kl(student, teacher, 10.0, 1), 100 * expected.mean(1))
