import math

import pytest
import torch
from torch.nn import functional as F

from kd_dense.losses import CWDLoss, cwd_loss
from tests.losses.contract import LossContract, OneChannelContract
from tests.mm.processes import in_two_processes


class TestCWD(LossContract):
    loss = CWDLoss(weight=3.0)
    function = staticmethod(cwd_loss)

    def test_matches_the_equation_written_out(self):
        student, teacher = self.example()
        temperature = 4.0

        def distribution(values):
            exps = [math.exp(v / temperature) for v in values]
            return [e / sum(exps) for e in exps]

        total = 0.0
        for n in range(3):
            for c in range(4):
                p = distribution(teacher[n, c].flatten().tolist())
                q = distribution(student[n, c].flatten().tolist())
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected = temperature**2 * total / (3 * 4)
        assert cwd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)

    def test_ignores_a_constant_per_channel(self):
        student, teacher = self.example()
        shifted = student + torch.randn(3, 4, 1, 1, dtype=torch.float64)
        assert torch.allclose(cwd_loss(student, teacher), cwd_loss(shifted, teacher))

    def test_is_not_negative_and_grows_with_the_disagreement(self):
        student, teacher = self.example()
        values = [cwd_loss(teacher + k * (student - teacher), teacher) for k in (0, 0.5, 1, 2)]
        assert values[0].abs() < 1e-12
        assert values == sorted(values)

    def test_survives_logits_that_underflow_softmax(self):
        student = torch.tensor([[[[0.0, 2000.0]]]], requires_grad=True)
        assert student.softmax(-1).log().isinf().any()
        value = cwd_loss(student, torch.tensor([[[[2000.0, 0.0]]]]))
        value.backward()
        assert value == 2000.0
        assert student.grad.isfinite().all()


class TestCWDSpatial(LossContract):
    loss = CWDLoss(weight=2.0, norm='spatial')
    function = staticmethod(lambda s, t: cwd_loss(s, t, norm='spatial'))

    def test_is_pixel_wise_distillation(self):
        student, teacher = self.example()
        expected = F.kl_div(
            (student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction='none'
        )
        value = cwd_loss(student, teacher, 2.0, norm='spatial')
        assert torch.allclose(value, 4 * expected.sum(1).mean())


class TestCWDSpatialOneChannel(OneChannelContract):
    loss = CWDLoss(weight=2.0, temperature=2.0, norm='spatial')
    function = staticmethod(lambda s, t: cwd_loss(s, t, 2.0, norm='spatial'))

    def test_is_the_divergence_of_two_bernoulli_distributions(self):
        student, teacher = self.example()
        total = 0.0
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            q, p = (1 / (1 + math.exp(-z / 2)) for z in (s, t))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        value = cwd_loss(student, teacher, 2.0, norm='spatial')
        assert value.item() == pytest.approx(4 * total / student.numel(), rel=1e-12)


class TestCWDSpatialMseOneChannel(OneChannelContract):
    loss = CWDLoss(weight=2.0, norm='spatial', divergence='mse')
    function = staticmethod(lambda s, t: cwd_loss(s, t, norm='spatial', divergence='mse'))

    def test_is_the_squared_difference_of_both_probabilities(self):
        student, teacher = self.example()
        expected = 2 * F.mse_loss(student.sigmoid(), teacher.sigmoid())
        assert torch.allclose(self.loss(student, teacher), 2 * expected, rtol=1e-12)


class TestCWDChannelMean(LossContract):
    loss = CWDLoss(weight=2.0, norm='channel_mean', divergence='mse')
    function = staticmethod(lambda s, t: cwd_loss(s, t, norm='channel_mean', divergence='mse'))

    def test_is_the_squared_difference_of_the_means(self):
        student, teacher = self.example()
        expected = (student.mean((2, 3)) - teacher.mean((2, 3))).square().mean()
        assert torch.allclose(self.loss(student, teacher), 2 * expected)


class TestCWDNone(LossContract):
    loss = CWDLoss(weight=2.0, norm='none', divergence='mse')
    function = staticmethod(lambda s, t: cwd_loss(s, t, norm='none', divergence='mse'))

    def test_the_authors_slip_needs_its_switch(self):
        student, teacher = self.example()
        per_image = (student - teacher).square().sum((1, 2, 3)) / (3 * 5 * 6)
        arguments = dict(norm='none', divergence='mse')
        assert torch.allclose(cwd_loss(student, teacher, **arguments), per_image.sum())
        assert torch.allclose(
            cwd_loss(student, teacher, **arguments, first_image_only=True), per_image[0]
        )


class TestCWDMse(LossContract):
    loss = CWDLoss(weight=2.0, divergence='mse')
    function = staticmethod(lambda s, t: cwd_loss(s, t, divergence='mse'))


def halves_and_whole(rank):
    """The value and the gradient of an image a process, or of both in one process."""
    student, teacher = TestCWD().example()
    share = slice(2) if rank is None else slice(rank, rank + 1)
    student, teacher = (x.detach()[share].clone() for x in (student, teacher))
    value = cwd_loss(student.requires_grad_(), teacher, standardise=True)
    return value.detach(), *torch.autograd.grad(value, student)


class TestCWDStandardised(LossContract):
    loss = CWDLoss(weight=2.0, standardise=True)
    function = staticmethod(lambda s, t: cwd_loss(s, t, standardise=True))

    @pytest.mark.parametrize(
        'variant',
        [
            dict(),
            dict(norm='spatial'),
            dict(divergence='mse'),
            dict(norm='none', divergence='mse'),
        ],
    )
    def test_is_that_of_maps_behind_a_batch_norm_without_parameters(self, variant):
        pair = self.example()
        norm = torch.nn.BatchNorm2d(4, affine=False, track_running_stats=False)
        expected = cwd_loss(*map(norm, pair), **variant)
        torch.testing.assert_close(cwd_loss(*pair, standardise=True, **variant), expected)

    def test_strength_does_not_count(self):
        student, teacher = self.example()
        torch.testing.assert_close(
            cwd_loss(1e4 * student + 7, teacher, standardise=True),
            cwd_loss(100 * student, teacher, standardise=True),
        )

    def test_two_half_batches_average_to_the_whole(self):
        """In two processes: by themselves, they have statistics of their own."""
        (first, ours), (second, theirs) = in_two_processes(halves_and_whole)
        value, grad = halves_and_whole(None)
        torch.testing.assert_close((first + second) / 2, value)
        torch.testing.assert_close(torch.cat([ours, theirs]) / 2, grad)


@pytest.mark.parametrize('temperature', [0.0, -1.0, float('nan'), float('inf')])
def test_rejects_a_temperature_that_is_not_positive(temperature):
    maps = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match='temperature > 0'):
        cwd_loss(maps, maps, temperature)
    with pytest.raises(ValueError, match='temperature > 0'):
        CWDLoss(temperature=temperature)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(norm='chanel'), r"norm to be one of .*'channel'.*got 'chanel'"),
        (dict(divergence='l2'), r"divergence to be one of .*'mse'.*got 'l2'"),
        (dict(norm='none'), "expected divergence='mse'"),
        (dict(first_image_only=True), "belongs to norm='none'"),
        (dict(norm='channel_mean', standardise=True), 'means, which are negative'),
    ],
)
def test_rejects_variants_that_do_not_exist(arguments, message):
    maps = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=message):
        cwd_loss(maps, maps, **arguments)
    with pytest.raises(ValueError, match=message):
        CWDLoss(**arguments)
