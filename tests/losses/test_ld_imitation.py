import pytest
import torch
from torch.nn import functional as F

from kd_dense.functional import divergence
from kd_dense.losses import LDImitationLoss
from kd_dense.losses.ld.imitation import general_instances, imitation_loss
from kd_dense.losses.ld.regions import fine_grained_region, inside_region
from tests.losses.ld_head import (
    BINS,
    BOXES,
    SHAPES,
    STRIDES,
    Packed,
    make_maps,
    make_targets,
    prior_logits,
)
from tests.losses.test_ld_regions import slow_overlaps


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

    @pytest.mark.parametrize('region', ['main', 'inside', 'finegrained', 'all'])
    def test_matches_the_equation_position_by_position(self, region):
        student, teacher = make_features(), make_features(seed=1)
        targets = make_targets()
        arguments = targets.priors, torch.cat(targets.valid, 1), targets.boxes
        members = {
            'main': targets.positive,
            'inside': inside_region(*arguments),
            'finegrained': fine_grained_region(*arguments),
            'all': torch.ones_like(targets.positive),  # in the padding too
        }[region]
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

    def test_all_positions_are_the_mean_squared_difference_of_the_maps(self):
        student, teacher = make_features(), make_features(seed=1)
        value = LDImitationLoss(region='all')(student, teacher, make_targets(per_position=3))
        expected = sum(F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True))
        torch.testing.assert_close(value, expected)

    @pytest.mark.parametrize('region', ['main', 'inside', 'finegrained'])
    def test_images_without_boxes_give_zero_in_touch_with_the_graph(self, region):
        student = [x.requires_grad_() for x in make_features(2)]
        targets = make_targets([torch.zeros(0, 4, dtype=torch.float64)] * 2)
        value = LDImitationLoss(region=region)(student, make_features(2, seed=1), targets)
        assert value == 0
        value.backward()
        assert all(x.grad is not None and not x.grad.any() for x in student)


class TestDecoupled(Packed):
    loss = LDImitationLoss(weight=2.0, region='decoupled')
    maps = staticmethod(make_features)

    def function(self, student, teacher):
        return self.call(LDImitationLoss(region='decoupled'), student, teacher)

    def test_names_both_shapes_when_they_differ(self):
        with pytest.raises(ValueError, match=r'does not fit the map \(2, 2, 6, 7\)'):
            self.loss(make_features(2), make_features(2), make_targets())

    @pytest.mark.parametrize('per_position', [1, 3])
    def test_matches_the_rule_of_the_authors_position_by_position(self, per_position):
        """Objects of both are compared, and backgrounds of both, which their code mixes up."""
        student, teacher = make_features(), make_features(seed=1)
        targets = make_targets(per_position=per_position)
        region = inside_region(targets.priors, torch.cat(targets.valid, 1), targets.boxes)
        expected = 0.0
        for level, members in enumerate(region.split(targets.sizes, 1)):
            in_box = members.reshape(-1, per_position).any(1)
            s, t = (x[level].permute(0, 2, 3, 1).reshape(-1, 2) for x in (student, teacher))
            assert 0 < in_box.sum() < len(in_box)
            expected += F.mse_loss(s[in_box], t[in_box]) + 2 * F.mse_loss(s[~in_box], t[~in_box])
        value = LDImitationLoss(region='decoupled')(student, teacher, targets)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        found = imitation_loss(student, teacher, region.split(targets.sizes, 1), 2.0)
        torch.testing.assert_close(value, found, rtol=1e-12, atol=0)

    def test_without_a_background_it_is_the_region_inside_boxes(self):
        maps = make_features(), make_features(seed=1), make_targets()
        value = LDImitationLoss(region='decoupled', background_weight=0.0)(*maps)
        assert torch.equal(value, LDImitationLoss(region='inside')(*maps))
        both = [LDImitationLoss(region='decoupled', background_weight=w)(*maps) for w in (1, 3)]
        torch.testing.assert_close(both[1] - value, 3 * (both[0] - value))

    def test_an_image_without_boxes_is_background(self):
        targets = make_targets([torch.zeros(0, 4, dtype=torch.float64)] * 2)
        maps = make_features(2), make_features(2, seed=1), targets
        value = LDImitationLoss(region='decoupled')(*maps)
        torch.testing.assert_close(value, 2 * LDImitationLoss(region='all')(*maps))

    def test_the_authors_levels_leave_out_the_background_too(self):
        student, teacher, targets = make_features(), make_features(seed=1), make_targets()
        value = LDImitationLoss(region='decoupled', positive_levels_only=True)(
            student, teacher, targets
        )
        region = inside_region(targets.priors, torch.cat(targets.valid, 1), targets.boxes)
        first = region.split(targets.sizes, 1)[0]  # positives are on the first level alone
        torch.testing.assert_close(value, imitation_loss(student[:1], teacher[:1], [first], 2.0))

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_of_the_background_that_makes_no_sense(self, weight):
        with pytest.raises(ValueError, match='finite background_weight >= 0'):
            LDImitationLoss(region='decoupled', background_weight=weight)


class TestAll(Packed):
    loss = LDImitationLoss(weight=2.0, region='all')
    maps = staticmethod(make_features)

    def function(self, student, teacher):
        return self.call(LDImitationLoss(region='all'), student, teacher)

    def test_names_both_shapes_when_they_differ(self):
        with pytest.raises(ValueError, match=r'does not fit the map \(2, 2, 6, 7\)'):
            self.loss(make_features(2), make_features(2), make_targets())


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
            monkeypatch.setattr(divergence, 'CPU_BLOCK_BYTES', 8 * size)
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

    def test_asks_for_the_outputs_of_the_head(self):
        with pytest.raises(TypeError, match="'gibox' expects head_outputs"):
            self.loss(make_features(), make_features(), make_targets())


def test_rejects_a_region_of_features_that_does_not_exist():
    with pytest.raises(ValueError, match=r"region to be one of \('main', .*got 'fitnets'"):
        LDImitationLoss(region='fitnets')


def test_rejects_maps_that_do_not_fit_the_targets():
    maps = make_features()[::-1]
    with pytest.raises(ValueError, match=r'a region of priors .* does not fit'):
        LDImitationLoss(region='main')(maps, maps, make_targets())
