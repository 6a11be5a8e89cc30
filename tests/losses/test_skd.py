import copy
import io
import math

import pytest
import torch
from torch.nn import functional as F

from kd_dense.losses import (
    HolisticLoss,
    PairWiseLoss,
    PixelWiseLoss,
    pair_wise_loss,
    pixel_wise_loss,
)
from kd_dense.measure import peak_memory
from tests.losses.contract import LossContract, OneChannelContract


class TestPixelWise(LossContract):
    loss = PixelWiseLoss(weight=10.0)
    function = staticmethod(pixel_wise_loss)
    zero_on_match = False

    def test_matches_the_equation_written_out(self):
        student, teacher = self.example()
        temperature = 2.0
        total = 0.0
        for n in range(3):
            for y in range(5):
                for x in range(6):
                    p, q = (
                        [math.exp(v / temperature) for v in maps[n, :, y, x].tolist()]
                        for maps in (teacher, student)
                    )
                    total -= sum(
                        a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True)
                    )
        expected = temperature**2 * total / (5 * 6)
        summed = pixel_wise_loss(student, teacher, temperature, published_batch=None)
        assert summed.item() == pytest.approx(expected, rel=1e-12)
        value = pixel_wise_loss(student, teacher, temperature, published_batch=8)
        assert value.item() == pytest.approx(expected * 8 / 3, rel=1e-12)

    def test_is_smallest_where_the_two_agree(self):
        student, teacher = self.example()
        values = [
            pixel_wise_loss(teacher + k * (student - teacher), teacher) for k in (0, 0.5, 1, 2)
        ]
        assert values == sorted(values)


class TestPixelWiseKL(LossContract):
    loss = PixelWiseLoss(weight=2.0, temperature=3.0, divergence='kl')
    function = staticmethod(lambda s, t: pixel_wise_loss(s, t, 3.0, 'kl'))

    def test_has_the_gradient_of_the_cross_entropy(self):
        student, teacher = self.example()
        grads = [
            torch.autograd.grad(pixel_wise_loss(student, teacher, 3.0, kind), student)[0]
            for kind in ('cross_entropy', 'kl')
        ]
        assert torch.allclose(*grads, rtol=1e-12, atol=1e-15)


class TestPixelWiseOneChannel(OneChannelContract):
    loss = PixelWiseLoss(weight=10.0)
    function = staticmethod(pixel_wise_loss)
    zero_on_match = False

    def test_is_the_binary_cross_entropy(self):
        student, teacher = self.example()
        target = (teacher.detach() / 3).sigmoid()
        entropy = F.binary_cross_entropy_with_logits(student / 3, target)
        value = pixel_wise_loss(student, teacher, 3.0)
        assert torch.allclose(value, 8 * 9 * entropy, rtol=1e-12)


class TestPixelWiseKLOneChannel(OneChannelContract):
    loss = PixelWiseLoss(weight=2.0, temperature=3.0, divergence='kl')
    function = staticmethod(lambda s, t: pixel_wise_loss(s, t, 3.0, 'kl'))


def affinity_written_out(maps, window):
    """Cosine similarities of the nodes of one image, in plain Python."""
    _, height, width = maps.shape
    nodes = [
        [float(channel[y : y + window[0], x : x + window[1]].max()) for channel in maps]
        for y in range(0, height, window[0])
        for x in range(0, width, window[1])
    ]
    norms = [math.sqrt(sum(v * v for v in node)) + 1e-8 for node in nodes]
    return [
        [
            sum(a * b for a, b in zip(nodes[i], nodes[j], strict=True)) / (norms[i] * norms[j])
            for j in range(len(nodes))
        ]
        for i in range(len(nodes))
    ]


class TestPairWise(LossContract):
    loss = PairWiseLoss(weight=0.5, scale=0.4, detach_norm=False)
    function = staticmethod(lambda s, t: pair_wise_loss(s, t, 0.4, detach_norm=False))

    def test_matches_the_equation_written_out(self):
        student, teacher = self.example()
        teacher = torch.cat([teacher, teacher.square()], dim=1)  # other channels
        total = 0.0
        for n in range(3):
            ours = affinity_written_out(student[n].detach(), (2, 2))
            theirs = affinity_written_out(teacher[n].detach(), (2, 2))
            assert len(ours) == 9
            total += sum(
                (a - b) ** 2
                for row_a, row_b in zip(ours, theirs, strict=True)
                for a, b in zip(row_a, row_b, strict=True)
            )
        value = pair_wise_loss(student, teacher, scale=0.4)
        assert value.item() == pytest.approx(total / 9**2 / 3, rel=1e-12)

    def test_ignores_how_large_the_features_are(self):
        student, teacher = self.example()
        scaled = pair_wise_loss(5 * student, 0.1 * teacher)
        assert torch.allclose(scaled, pair_wise_loss(student, teacher), atol=1e-7)

    @pytest.mark.parametrize(
        ('size', 'nodes'), [((65, 65), 9), ((64, 64), 4), ((64, 128), 4), ((1, 1), 1), ((1, 3), 3)]
    )
    def test_nodes_of_the_published_scale(self, size, nodes):
        from kd_dense.losses.skd import unit_nodes

        assert unit_nodes(torch.rand(1, 2, *size), 0.5, True).shape == (1, 2, nodes)

    def test_memory_is_one_affinity_and_the_nodes(self):
        for side in (8, 16, 32):
            student, teacher = torch.randn(2, 2, 8, side, side)
            student.requires_grad_()

            def call(student=student, teacher=teacher, side=side):
                loss = pair_wise_loss(student, teacher, 1 / side)
                torch.autograd.grad(loss, student)

            call()
            affinity = 4 * 2 * side**4
            assert affinity < peak_memory(call) <= affinity + 20 * 4 * student.numel()

    def test_many_nodes_are_added_up_exactly_enough(self):
        student, teacher = torch.randn(2, 2, 16, 32, 32, generator=torch.manual_seed(0))
        exact = pair_wise_loss(student.double(), teacher.double(), 1 / 32)
        value = pair_wise_loss(student, teacher, 1 / 32)
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)

    def test_backward_under_autocast_is_not_rounded(self):
        student, teacher = self.example(torch.float32)
        grads = []
        for enabled in (False, True):
            value = pair_wise_loss(student, teacher, 0.4)
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                grads += torch.autograd.grad(value, student)
        assert torch.equal(*grads)

    @pytest.mark.parametrize('detach_norm', [True, False])
    def test_features_that_are_zero_have_a_gradient(self, detach_norm):
        student = torch.zeros(1, 2, 4, 4, requires_grad=True)
        pair_wise_loss(student, torch.rand(1, 2, 4, 4), 0.5, detach_norm).backward()
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize('scale', [0.0, -0.5, 1.5, float('nan')])
    def test_rejects_a_scale_that_is_no_share(self, scale):
        maps = torch.zeros(1, 1, 2, 2)
        with pytest.raises(ValueError, match='0 < scale <= 1'):
            pair_wise_loss(maps, maps, scale)
        with pytest.raises(ValueError, match='0 < scale <= 1'):
            PairWiseLoss(scale=scale)

    def test_widths_may_differ_and_nothing_else(self):
        assert PairWiseLoss.any_channels
        student = torch.zeros(2, 3, 4, 4)
        for teacher in (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4)):
            with pytest.raises(ValueError, match=r'differ in C at most.*\(2, 3, 4, 4\)'):
                pair_wise_loss(student, teacher)


class TestPairWiseDetached(LossContract):
    loss = PairWiseLoss(weight=0.5, scale=0.4)
    function = staticmethod(lambda s, t: pair_wise_loss(s, t, 0.4))

    def test_gradient_is_right(self):
        """The norms are constants: a gradient of another function, whose norms are fixed."""
        student, teacher = self.example()

        def nodes(maps):
            return F.max_pool2d(maps, 2, ceil_mode=True).flatten(2)

        norm = nodes(student.detach()).norm(dim=1, keepdim=True) + 1e-8
        target = F.normalize(nodes(teacher.detach()), dim=1)

        def fixed(maps):
            x = nodes(maps) / norm
            return 0.5 * (x.mT @ x - target.mT @ target).square().mean()

        (grad,) = torch.autograd.grad(self.value(student, teacher), student)
        assert torch.autograd.gradcheck(fixed, (student,))
        (expected,) = torch.autograd.grad(fixed(student), student)
        assert torch.allclose(grad, expected, rtol=1e-6)
        (attached,) = torch.autograd.grad(
            0.5 * pair_wise_loss(student, teacher, 0.4, detach_norm=False), student
        )
        assert not torch.allclose(grad, attached, rtol=1e-2)


class TestHolistic(LossContract):
    loss = HolisticLoss(channels=4, weight=0.1, preprocess='tanh').double().eval()
    zero_on_match = False
    start = {n: v.clone() for n, v in loss.critic.named_buffers()}

    def rewind(self):
        # Each call moves the critic's power iteration on.
        self.loss.critic.load_state_dict(self.start, strict=False)

    def value(self, student, teacher):
        self.rewind()
        return super().value(student, teacher)

    def function(self, student, teacher):
        self.rewind()
        return -self.loss.critic(student).sum() / len(student)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_maps_give_a_float32_loss(self, dtype):
        self.loss = copy.deepcopy(self.loss).float()
        super().test_half_precision_maps_give_a_float32_loss(dtype)

    def test_rejects_a_weight_that_is_negative_or_not_finite(self):
        for weight in (-1.0, float('nan'), float('inf')):
            with pytest.raises(ValueError, match='finite weight >= 0'):
                HolisticLoss(channels=4, weight=weight)

    def test_gradient_is_right(self):
        # The critic enlarges maps: a few images and positions are enough to differentiate.
        student, teacher = (x[:1, :, :2, :3].detach() for x in self.example())
        student.requires_grad_()
        self.value(student, teacher)
        assert torch.autograd.gradcheck(lambda x: self.value(x, teacher), (student,))


def maps(count=2, channels=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, count, channels, size, size, generator=generator)
    return student.requires_grad_(), teacher


class TestCriticOfHolistic:
    def test_is_not_trained_by_the_students_backward(self):
        loss = HolisticLoss(3)
        assert not any(p.requires_grad for p in loss.parameters())
        student, teacher = maps()
        loss(student, teacher).backward()
        assert all(p.grad is None for p in loss.parameters())
        assert student.grad.abs().sum() > 0

    @pytest.mark.parametrize('kind', ['wgan-gp', 'hinge'])
    def test_own_gradient_and_no_other(self, kind):
        loss = HolisticLoss(3, kind=kind)
        student, teacher = maps()
        loss(student, teacher).backward()
        before = student.grad.clone()
        value = loss.critic_backward()
        assert value.shape == ()
        assert not value.requires_grad
        assert all(p.grad is not None for n, p in loss.named_parameters() if 'last.b' not in n)
        assert not any(p.requires_grad for p in loss.parameters())
        assert torch.equal(student.grad, before)

    def test_learns_to_tell_the_teacher_from_the_student(self):
        torch.manual_seed(0)
        loss = HolisticLoss(3, kind='hinge', preprocess='tanh')
        optimizer = torch.optim.Adam(loss.critic.parameters(), lr=4e-4, betas=(0.9, 0.99))
        values = []
        for step in range(12):
            student, teacher = maps(seed=step % 2)
            loss(student + 1, teacher)
            values.append(loss.critic_backward())
            optimizer.step()
            optimizer.zero_grad()
        assert values[-1] < 0.5 * values[0]

    def test_gradient_is_that_of_the_equation(self):
        torch.manual_seed(0)
        loss = HolisticLoss(3, weight=0.5, kind='hinge', preprocess='tanh').double()
        twin = copy.deepcopy(loss.critic).requires_grad_()
        student, teacher = (x.double() for x in maps())
        loss(student, teacher)
        twin(student)
        loss.critic_backward(share=0.25)
        real, fake = twin(teacher), twin(student)
        expected = 0.5 * 0.25 * ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean()
        expected.backward()
        for p, q in zip(loss.critic.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-10, atol=1e-14)

    def test_forgotten_critic_is_an_error(self):
        loss = HolisticLoss(3)
        loss(*maps())
        with pytest.raises(RuntimeError, match=r"custom_hooks=.*type='kd_dense.CriticHook'"):
            loss(*maps())
        loss.critic_backward()
        loss(*maps())

    def test_nothing_is_kept_where_nothing_is_trained(self):
        loss = HolisticLoss(3)
        with torch.no_grad():
            loss(*maps())
        loss.eval()(*maps())
        off = HolisticLoss(3, weight=0.0)
        off(*maps())
        for idle in (loss, off):
            assert not idle.critic_is_due
            with pytest.raises(RuntimeError, match='expects a forward in training mode'):
                idle.critic_backward()

    def test_copies_leave_the_maps_behind(self):
        loss = HolisticLoss(3)
        loss(*maps())
        assert loss.critic_is_due
        twin = copy.deepcopy(loss)
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        loss.critic_backward()
        for copied in (twin, saved, copy.deepcopy(loss)):
            assert not copied.critic_is_due
            copied(*maps())  # and it works

    def test_draws_nothing_for_hinge(self):
        loss = HolisticLoss(3, kind='hinge')
        loss(*maps())
        before = torch.get_rng_state()
        loss.critic_backward()
        assert torch.equal(torch.get_rng_state(), before)

    def test_float32_under_autocast(self):
        torch.manual_seed(0)
        loss = HolisticLoss(3)
        twin = copy.deepcopy(loss)
        student, teacher = maps()
        expected = loss(student, teacher)
        torch.manual_seed(1)
        loss.critic_backward()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(twin(student, teacher), expected)
            torch.manual_seed(1)
            twin.critic_backward()
        for p, q in zip(loss.parameters(), twin.parameters(), strict=True):
            assert p.grad is q.grad is None or torch.equal(p.grad, q.grad)

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (dict(kind='lsgan'), r"kind to be one of .*'wgan-gp'.*got 'lsgan'"),
            (dict(gradient_penalty=-1.0), 'finite gradient_penalty >= 0'),
            (dict(preprocess='bn'), r"preprocess to be one of .*'batch_norm'.*got 'bn'"),
        ],
    )
    def test_rejects_what_does_not_exist(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            HolisticLoss(3, **arguments)

    def test_rejects_maps_of_other_channels(self):
        with pytest.raises(ValueError, match=r'channels=3.*\(2, 4, 16, 16\)'):
            HolisticLoss(3)(*maps(channels=4))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(divergence='ce'), r"divergence to be one of .*'cross_entropy'.*got 'ce'"),
        (dict(published_batch=0), r'published_batch as an int >= 1 or None, got .*=0'),
        (dict(published_batch=8.0), r'published_batch as an int >= 1 or None, got .*=8\.0'),
        (dict(temperature=0.0), 'temperature > 0'),
    ],
)
def test_pixel_wise_rejects_what_does_not_exist(arguments, message):
    logits = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match=message):
        pixel_wise_loss(logits, logits, **arguments)
    with pytest.raises(ValueError, match=message):
        PixelWiseLoss(**arguments)
