import math
from itertools import product

import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from kd_dense.functional import mean_over_ranks
from kd_dense.losses import (
    CosineLoss,
    FBKDLoss,
    FitNetsLoss,
    FTLoss,
    MimicLoss,
    NFDLoss,
    PKDLoss,
    VkDLoss,
    fbkd_loss,
    mimic_loss,
)
from kd_dense.losses.features.mimic.fbkd import PARTS, Connectors, Relation
from tests.losses.contract import LossContract
from tests.mm.processes import in_two_processes


class TestFitNets(LossContract):
    loss = FitNetsLoss(weight=3.0)
    function = staticmethod(mimic_loss)


class TestContext(LossContract):
    """Of ReviewKD: a coarse grid weighs 1/2, the next 1/4; sides not below the height are out."""

    loss = FitNetsLoss(weight=3.0, pooled=(5, 4, 2, 1))

    @staticmethod
    def function(student, teacher):
        d = student - teacher
        coarse = [F.adaptive_avg_pool2d(d, side).square().mean() for side in (4, 2, 1)]
        total = d.square().mean() + coarse[0] / 2 + coarse[1] / 4 + coarse[2] / 8
        return total / (1 + 1 / 2 + 1 / 4 + 1 / 8)


def channels_standardised(x, dims, eps=0.0):
    std, mean = torch.std_mean(x, dims, keepdim=True)
    return (x - mean) / (std + eps)


class BatchStatistics(LossContract):
    # What holds in its place is tested below, with two processes.
    test_two_half_batches_average_to_the_whole = None

    def test_a_constant_channel_has_a_finite_gradient(self):
        student, teacher = (x.detach() for x in self.example())
        student[:, 1] = 4.0
        student.requires_grad_()
        value = self.value(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


class TestPKD(BatchStatistics):
    loss = PKDLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (channels_standardised(x, (0, 2, 3), 1e-6) for x in (student, teacher))
        return (s - t).square().mean() / 2

    def test_is_1_less_the_mean_correlation(self):
        student, teacher = (x.transpose(0, 1).flatten(1) for x in self.example())
        pairs = zip(student, teacher, strict=True)
        r = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
        n = student.shape[1]
        value = mimic_loss(*self.example(), 'batch', 'half_squared')
        assert torch.allclose(value, (1 - r.mean()) * (n - 1) / n)

    @pytest.mark.parametrize('side', [0, 1])
    def test_scale_and_shift_of_a_channel_do_not_matter(self, side):
        maps = list(self.example())
        value = self.value(*maps)
        scale, shift = torch.randn(2, 4, 1, 1, dtype=torch.float64)
        maps[side] = maps[side] * (0.1 + scale.abs()) + 10 * shift
        assert torch.allclose(self.value(*maps), value, rtol=1e-4)  # but for the epsilon


class TestVkD(BatchStatistics):
    loss = VkDLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (channels_standardised(x, (0, 2, 3)) for x in (student, teacher))
        return F.smooth_l1_loss(s, t)

    def test_is_pkd_where_the_two_are_near(self):
        student, noise = self.example()
        near = student + 0.1 * noise
        assert torch.allclose(VkDLoss()(student, near), PKDLoss(eps=0.0)(student, near))


class TestNFD(LossContract):
    loss = NFDLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (channels_standardised(x, (2, 3)) for x in (student, teacher))
        return (s - t).square().mean()

    def test_scale_and_shift_of_a_channel_of_an_image_do_not_matter(self):
        student, teacher = self.example()
        scale, shift = torch.randn(2, 3, 4, 1, 1, dtype=torch.float64)
        moved = student * (0.1 + scale.abs()) + shift
        assert torch.allclose(self.value(moved, teacher), self.value(student, teacher))


@pytest.mark.parametrize('norm', ['none', 'batch', 'image', 'map', 'position'])
def test_maps_of_a_tap_are_the_sum_of_each(norm):
    shapes = [(3, 4, 5, 6), (3, 2, 2, 3), (3, 2, 1, 1)]
    students = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    teachers = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    loss = MimicLoss(weight=2.0, norm=norm)
    expected = sum(loss(*maps) for maps in zip(students, teachers, strict=True))
    found = MimicLoss.over_maps([loss], students, teachers)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(value, students) for value in (found, expected))
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y)


class TestFT(LossContract):
    loss = FTLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (F.normalize(x.flatten(1)) for x in (student, teacher))
        return (s - t).abs().mean()

    def test_scale_of_an_image_does_not_matter(self):
        student, teacher = self.example()
        scale = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64).view(3, 1, 1, 1)
        assert torch.allclose(self.value(scale * student, teacher), self.value(student, teacher))


class TestCosine(LossContract):
    loss = CosineLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        return 1 - F.cosine_similarity(student, teacher).mean()

    def test_scale_of_a_position_does_not_matter(self):
        student, teacher = self.example()
        scale = 0.1 + torch.rand(3, 1, 5, 6, dtype=torch.float64)
        for maps in ((scale * student, teacher), (student, scale * teacher)):
            assert torch.allclose(self.value(*maps), self.value(student, teacher))

    def test_is_2_where_the_two_point_away_from_each_other(self):
        student, _ = self.example()
        assert torch.allclose(CosineLoss()(student, -student), torch.tensor(2.0).double())

    def test_a_position_where_nothing_is_active_has_a_gradient_of_ordinary_size(self):
        student, teacher = (x.detach() for x in self.example())
        student[0, :, 0, 0] = 0
        student.requires_grad_()
        CosineLoss()(student, teacher).backward()
        assert student.grad[0, :, 0, 0].abs().max() <= 1 / 90  # over N H W


# The table of mimic_loss, once more, in Python's own numbers.


def slow(student, teacher, norm, distance, reduction):
    s, t = (slow_normed(x.tolist(), norm) for x in (student, teacher))
    images, channels, height, width = student.shape
    places = list(product(range(images), range(channels), range(height), range(width)))
    total = 0.0
    for n, c, i, j in places:
        d = abs(s[n][c][i][j] - t[n][c][i][j])
        total += {
            'l1': d,
            'squared': d * d,
            'half_squared': d * d / 2,
            'smooth_l1': d * d / 2 if d < 1 else d - 0.5,
        }[distance]
    count = {'mean': len(places), 'position': images * height * width}.get(reduction, images)
    return math.sqrt(total / count) if reduction == 'root' else total / count


def slow_normed(x, norm):
    images, channels, height, width = len(x), len(x[0]), len(x[0][0]), len(x[0][0][0])
    key = {
        'none': lambda n, c, i, j: None,
        'batch': lambda n, c, i, j: c,
        'image': lambda n, c, i, j: (n, c),
        'map': lambda n, c, i, j: n,
        'position': lambda n, c, i, j: (n, i, j),
    }[norm]
    places = list(product(range(images), range(channels), range(height), range(width)))
    groups = {}
    for n, c, i, j in places:
        groups.setdefault(key(n, c, i, j), []).append(x[n][c][i][j])
    result = torch.zeros(images, channels, height, width, dtype=torch.float64).tolist()
    for n, c, i, j in places:
        values = groups[key(n, c, i, j)]
        mean, scale = 0.0, 1.0
        if norm in ('batch', 'image'):
            mean = sum(values) / len(values)
            scale = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        elif norm != 'none':
            scale = math.sqrt(sum(v * v for v in values))
        result[n][c][i][j] = (x[n][c][i][j] - mean) / scale
    return result


@pytest.mark.parametrize('norm', ['none', 'batch', 'image', 'map', 'position'])
@pytest.mark.parametrize('distance', ['l1', 'squared', 'half_squared', 'smooth_l1'])
@pytest.mark.parametrize('reduction', ['mean', 'position', 'image', 'root'])
def test_matches_the_table_written_out(norm, distance, reduction):
    if reduction == 'root' and distance != 'squared':
        return
    maps = [2 * x.detach()[:, :, :3, :2] for x in LossContract().example()]
    value = mimic_loss(*maps, norm, distance, reduction)
    assert value.item() == pytest.approx(slow(*maps, norm, distance, reduction), rel=1e-12)
    module = MimicLoss(2.0, norm, distance, reduction)
    assert torch.equal(module(*maps), 2 * value)


@pytest.mark.parametrize('norm', ['batch', 'image'])
def test_epsilon_and_the_bias_of_the_variance(norm):
    maps = [x.detach() for x in LossContract().example()]
    dims = (0, 2, 3) if norm == 'batch' else (2, 3)
    s, t = ((x - x.mean(dims, keepdim=True)) / (x.std(dims, correction=0, keepdim=True) + 0.3)
            for x in maps)  # fmt: skip
    value = mimic_loss(*maps, norm, eps=0.3, unbiased=False)
    assert torch.allclose(value, F.mse_loss(s, t))


def test_the_gradient_of_a_root_is_right_and_0_at_0():
    student, teacher = LossContract().example()
    loss = MimicLoss(reduction='root')
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), (student,))
    loss(student, student.detach()).backward()
    assert not student.grad.any()


@pytest.mark.parametrize('size', [(7, 5), (4, 4), (9, 1), (2, 3)])
def test_grids_are_those_of_adaptive_pooling(size):
    maps = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    value, weight = F.l1_loss(*maps), 1.0
    for side in [side for side in (3, 4, 1, 2) if side < size[0]]:
        weight /= 2
        value = value + weight * F.l1_loss(*(F.adaptive_avg_pool2d(x, side) for x in maps))
    expected = value / (2 - weight)
    assert torch.allclose(mimic_loss(*maps, distance='l1', pooled=(3, 4, 1, 2)), expected)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(norm='layer'), r"norm to be one of .*got 'layer'"),
        (dict(distance='l2'), r"distance to be one of .*got 'l2'"),
        (dict(reduction='sum'), r"reduction to be one of .*got 'sum'"),
        (dict(reduction='root', distance='l1'), r"expected distance='squared', got 'l1'"),
        (dict(pooled=(4, 0)), r'sides >= 1, as \(4, 2, 1\), got \(4, 0\)'),
        (dict(pooled=4), r'got 4'),
        (dict(eps=-1.0), r'finite eps >= 0, got eps=-1\.0'),
        (dict(eps=math.nan), r'got eps=nan'),
    ],
)
def test_rejects_what_is_not_in_the_table(arguments, message):
    maps = torch.zeros(1, 1, 2, 2)
    for call in (lambda: MimicLoss(**arguments), lambda: mimic_loss(maps, maps, **arguments)):
        with pytest.raises(ValueError, match=message):
            call()


# FBKD


def connectors(channels=4, dtype=torch.float64, **arguments):
    """With parameters that are not as at the start, where the relations add nothing."""
    generator = torch.Generator().manual_seed(1)
    module = Connectors(channels, **arguments)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return module


class OneMap(FBKDLoss):
    def __init__(self, weight=1.0):
        super().__init__([4], weight, masked=0.3, channel=0.5, spatial=0.7, relation=1.1)
        self.connectors[0] = connectors(pool=2)

    def forward(self, student, teacher):
        return super().forward([student], [teacher])


class TestFBKD(BatchStatistics):
    loss = OneMap(weight=3.0)
    zero_on_match = False
    test_gradient_is_right = None  # is tested below, part by part

    @staticmethod
    def function(student, teacher):
        parts = fbkd_loss(student, teacher, TestFBKD.loss.connectors[0])
        return sum(TestFBKD.loss.weights[name] * part for name, part in parts.items())

    def example(self, dtype=torch.float64):
        self.loss.to(torch.promote_types(dtype, torch.float32))
        return super().example(dtype)


def plain_relation(x, block):
    """Every pair of positions, written out."""
    keys, values = (F.max_pool2d(conv(x), block.pool) for conv in (block.phi, block.g))
    pairs = torch.einsum('ncij,nckl->nijkl', block.theta(x), keys)
    mixed = torch.einsum('nijkl,nckl->ncij', pairs, values) / (keys.shape[2] * keys.shape[3])
    normed = F.batch_norm(block.out(mixed), None, None, block.scale, block.shift, training=True)
    return x + normed


def test_matches_the_equations_written_out():
    student, teacher = LossContract().example()
    module = connectors(reduction=2, pool=2)
    parts = fbkd_loss(student, teacher, module, temperature=0.7)

    def attention(x):
        return 30 * (x.abs().mean(1) / 0.7).flatten(1).softmax(1).view(3, 1, 5, 6)

    focus = ((attention(student) + attention(teacher)) / 2).detach()
    related = module.relation(plain_relation(student, module.student_relation))
    totals = dict(
        masked=focus * (module.features(student) - teacher).square(),
        channel=(module.channel(student.mean((2, 3))) - teacher.mean((2, 3))).square(),
        spatial=(module.spatial(student.mean(1, True)) - teacher.mean(1, True)).square(),
        relation=(related - plain_relation(teacher, module.teacher_relation)).square(),
    )
    for name, total in totals.items():
        expected = (total.sum() * 2 / 3).sqrt()
        assert torch.allclose(parts[name], expected)
        grads = (torch.autograd.grad(x, student, retain_graph=True)
                 for x in (parts[name], expected))  # fmt: skip
        torch.testing.assert_close(*grads)
    whole = fbkd_loss(student, teacher, module, temperature=0.7, published_batch=None)
    assert torch.allclose(whole['masked'], totals['masked'].sum().sqrt())


@pytest.mark.parametrize('part', PARTS)
def test_gradients_are_right_for_maps_and_parameters(part):
    student, teacher = (x.detach()[:2, :2, :3, :3] for x in LossContract().example())
    module = connectors(2)
    # The gradient of 'masked' takes the attention of the student for a constant.
    inputs = [student.requires_grad_(part != 'masked'), *module.parameters()]
    assert torch.autograd.gradcheck(lambda *_: fbkd_loss(student, teacher, module)[part], inputs)


def test_relations_add_nothing_at_the_start_and_are_trained():
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 4, 6, 6)
    loss = FBKDLoss([4])
    assert torch.equal(Relation(4)(maps[0]), maps[0])
    for _ in range(2):  # at first nothing but the scale of the norm has a gradient
        loss.zero_grad()
        sum(loss([maps[0]], [maps[1]]).values()).backward()
        for parameter in loss.parameters():
            parameter.data -= 0.1 * torch.randn(parameter.shape)
    for name, parameter in loss.named_parameters():
        assert parameter.grad.any(), name


def test_each_map_has_connectors_of_its_own_for_its_level():
    loss = FBKDLoss([8, 16, 8], reductions=(4, 2), pools=(8, 4))
    found = [(c.student_relation.pool, c.features.in_channels, c.student_relation.g.out_channels)
             for c in loss.connectors]  # fmt: skip
    assert found == [(8, 8, 2), (4, 16, 8), (4, 8, 4)]
    sizes = [(1, 8, 4, 3), (1, 16, 2, 2), (1, 8, 1, 1)]  # smaller than the pooling windows
    maps = [[torch.randn(size) for size in sizes] for _ in range(2)]
    total = loss(*maps)
    levels = [fbkd_loss(s, t, c) for s, t, c in zip(*maps, loss.connectors, strict=True)]
    for name, weight in loss.weights.items():
        assert torch.allclose(total[name], weight * sum(level[name] for level in levels))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(masked=-1.0), 'finite masked >= 0'),
        (dict(relation=math.nan), 'finite relation >= 0'),
        (dict(temperature=0.0), 'temperature > 0'),
        (dict(published_batch=0), 'published_batch as an int >= 1 or None'),
        (dict(pools=()), r'pools as numbers >= 1, got \(\)'),
        (dict(reductions=(0,)), r'reductions as numbers >= 1, got \(0,\)'),
    ],
)
def test_fbkd_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FBKDLoss([4], **arguments)


def test_fbkd_needs_a_map_for_each_connector():
    maps = [torch.zeros(1, 4, 2, 2)]
    with pytest.raises(ValueError, match=r'of 2 maps expects as many, got 1 of the student and 1'):
        FBKDLoss([4, 4])(maps, maps)


# Statistics of a batch are those of all processes.


class TwoLevels(PKDLoss):
    def forward(self, student, teacher):
        both = ([x, x[:, :3, ::2]] for x in (student, teacher))
        return self.over_maps([self], *both)


LOSSES = dict(
    pkd=PKDLoss(2.0),
    levels=TwoLevels(),
    vkd=VkDLoss(2.0),
    root=MimicLoss(reduction='root'),
    fbkd=OneMap(),
)


def values_and_gradients(rank):
    found = {}
    for name, loss in LOSSES.items():
        student, teacher = (x.detach() for x in LossContract().example())
        share = {None: slice(None), 0: slice(0, 1), 1: slice(1, 3)}[rank]
        student, teacher = (x[share].clone().requires_grad_() for x in (student, teacher))
        result = loss.double()(student, teacher)
        value = sum(result.values()) if isinstance(result, dict) else result
        if name in (
            'pkd',
            'levels',
            'vkd',
        ):  # a mean over the images of a process, which are not as many
            value = value * len(student) / mean_over_ranks(torch.tensor(float(len(student))))
        parameters = list(loss.parameters())
        grads = torch.autograd.grad(value, [student, *parameters])
        found[name] = value.detach(), grads[0], grads[1:]
    return found


def test_two_processes_find_what_one_does():
    """After the mean over processes, which DDP takes of the gradients."""
    assert not distributed.is_initialized()
    first, second = in_two_processes(values_and_gradients)
    for name, (value, grad, grads) in values_and_gradients(None).items():
        ours, theirs = first[name], second[name]
        torch.testing.assert_close((ours[0] + theirs[0]) / 2, value, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(torch.cat([ours[1], theirs[1]]) / 2, grad)
        for one, other, whole in zip(ours[2], theirs[2], grads, strict=True):
            torch.testing.assert_close((one + other) / 2, whole, rtol=1e-9, atol=1e-9)
