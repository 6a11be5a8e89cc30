import copy
import io
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_dense.critic import (
    BatchNorm,
    Critic,
    SelfAttention,
    SpectralConv2d,
    critic_loss,
    gradient_penalty,
)


class TestCritic:
    @pytest.mark.parametrize('size', [(65, 65), (64, 64), (64, 128), (97, 65), (1, 1), (3, 40)])
    @pytest.mark.parametrize('preprocess', ['batch_norm', 'tanh', 'image'])
    def test_scores_maps_of_any_size(self, size, preprocess):
        scores = Critic(2, preprocess)(torch.randn(2, 2, *size))
        assert scores.shape == (2,)
        assert scores.isfinite().all()

    def test_larger_maps_are_averaged(self):
        critic, seen = Critic(2, 'tanh'), []
        critic.last.register_forward_hook(lambda module, args, out: seen.append(out))
        scores = critic(torch.randn(1, 2, 64, 128))
        assert seen[0].shape == (1, 1, 1, 5)
        assert torch.equal(scores, seen[0].mean((1, 2, 3)))

    def test_smaller_maps_are_enlarged_in_proportion(self):
        critic, seen = Critic(2, 'tanh'), []
        critic.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        x = torch.randn(1, 2, 16, 40)
        critic(x)
        expected = F.interpolate(x.tanh(), (64, 160), mode='bilinear', align_corners=False)
        assert torch.equal(seen[0], expected)

    def test_images_are_mapped_to_minus_one_and_one(self):
        critic, seen = Critic(1, 'image'), []
        critic.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        critic(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 1, 64, 64))
        assert seen[0].mean((1, 2, 3)).tolist() == [-1, 1]

    def test_computes_in_the_precision_of_its_weights(self):
        critic = Critic(2, 'tanh')
        twin, x = copy.deepcopy(critic), torch.randn(1, 2, 64, 64)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            scores = critic(x)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, twin(x))

    @pytest.mark.parametrize('training', [True, False])
    def test_can_be_copied_and_saved_after_any_call(self, training):
        critic = Critic(2).train(training)
        x = torch.randn(2, 2, 20, 20)
        critic_loss(critic(x), critic(x + 1)).backward()
        gradient_penalty(critic, x, x + 1).backward()
        file = io.BytesIO()
        torch.save(critic, file)
        file.seek(0)
        twins = [copy.deepcopy(critic), torch.load(file, weights_only=False), Critic(2)]
        twins[-1].load_state_dict(critic.state_dict())
        twins[-1].train(training)
        expected = [critic(x) for _ in range(2)]
        for twin in twins:
            for scores in expected:
                assert torch.equal(twin(x), scores)

    def test_rejects_a_preprocessing_that_does_not_exist(self):
        with pytest.raises(ValueError, match=r"expects preprocess to be one of .*got 'bn'"):
            Critic(2, 'bn')


class TestSpectralConv2d:
    @pytest.mark.parametrize('training', [True, False])
    def test_each_call_takes_a_step(self, training):
        conv = SpectralConv2d(3, 5, 4, stride=2, padding=1).double().train(training)
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        matrix = conv.weight.detach().flatten(1)
        u = conv.weight_u.clone()
        for _ in range(3):
            y = conv(x)
            v = matrix.T @ u
            v = v / v.norm()
            u = matrix @ v
            sigma, u = u.norm(), u / u.norm()
            expected = F.conv2d(x, conv.weight / sigma, conv.bias, stride=2, padding=1)
            assert torch.allclose(y, expected, rtol=1e-12)
            assert torch.allclose(conv.weight_u, u)
            assert torch.allclose(conv.weight_v, v)

    def test_what_torch_has_does_not_do_it(self):
        """The reasons given in the docstring, so that they are looked at again."""
        torch.manual_seed(0)
        ours = SpectralConv2d(3, 5, 4)
        x = torch.randn(1, 3, 4, 4)

        hooked = nn.utils.spectral_norm(copy.deepcopy(nn.Conv2d(3, 5, 4)))
        state = ours.state_dict()
        state['weight_orig'] = state.pop('weight')
        hooked.load_state_dict(state)
        assert torch.allclose(hooked(x), ours(x))  # the same in training ...
        with pytest.raises(RuntimeError, match='deepcopy'):
            copy.deepcopy(hooked)
        assert not torch.allclose(hooked.eval()(x), ours.eval()(x))  # ... and not in evaluation

        other = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 5, 4))
        theirs, fresh = other.parametrizations.weight, SpectralConv2d(3, 5, 4)
        with torch.no_grad():
            fresh.weight.copy_(theirs.original)
            fresh.bias.copy_(other.bias)
            fresh.weight_u.copy_(theirs[0]._u)
            fresh.weight_v.copy_(theirs[0]._v)
        assert not torch.allclose(other(x), fresh(x), rtol=1e-5)

    def test_gradient_goes_through_the_norm(self):
        conv = SpectralConv2d(1, 3, 2).double()
        x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
        with torch.no_grad():
            for _ in range(200):
                conv(x)  # u and v no longer move

        def call(weight):
            return torch.func.functional_call(conv, {'weight': weight}, x)

        weight = conv.weight.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(call, (weight,))


class TestSelfAttention:
    def test_matches_the_sums_written_out(self):
        attention = SelfAttention(8).double()
        nn.init.constant_(attention.gamma, 0.7)
        x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
        y = attention(x)
        query, key, value = (
            layer(x)[0].flatten(1).T for layer in (attention.query, attention.key, attention.value)
        )
        for i in range(6):
            energies = torch.stack([query[i] @ key[j] for j in range(6)])
            seen = sum(w * value[j] for j, w in enumerate(energies.softmax(0)))
            expected = 0.7 * seen + x[0].flatten(1)[:, i]
            assert torch.allclose(y[0].flatten(1)[:, i], expected, rtol=1e-12)

    def test_starts_as_if_it_were_not_there(self):
        x = torch.randn(1, 8, 2, 3)
        assert torch.equal(SelfAttention(8)(x), x)


class TestBatchNorm:
    def test_is_that_of_torch_in_one_process(self):
        ours, theirs = BatchNorm(3).double(), nn.BatchNorm2d(3).double()
        x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
        for _ in range(3):
            assert torch.allclose(ours(x), theirs(x), rtol=1e-10)
        for name, value in ours.state_dict().items():
            assert torch.allclose(value, theirs.state_dict()[name], rtol=1e-12), name
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=1e-10)

    def test_can_be_differentiated_twice(self):
        norm = BatchNorm(2).double()
        x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(norm, (x,))


def test_a_penalty_of_a_flat_critic_is_one_and_has_a_gradient():
    weight = torch.zeros(1, 2, 1, 1, requires_grad=True)
    maps = torch.randn(3, 2, 4, 4)
    value = gradient_penalty(lambda x: (weight * x).sum((1, 2, 3)), maps, maps + 1)
    value.backward()
    assert value == 1
    assert weight.grad.isfinite().all()


def test_the_penalty_looks_between_the_two_with_a_share_per_image():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3))

    student, teacher = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    alpha = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1)
    with mock.patch('torch.rand', return_value=alpha):
        drawn = gradient_penalty(critic, student, teacher)
    assert torch.equal(seen[0], alpha.expand(3, 1, 2, 2))
    # the gradient 2x has norm 4 alpha
    assert torch.allclose(drawn, ((4 * alpha - 1) ** 2).mean())
    assert torch.equal(gradient_penalty(critic, student, teacher, alpha), drawn)


def test_no_gradient_of_the_penalty_reaches_the_maps():
    critic = nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten(0))
    student, teacher = torch.randn(2, 1, 2, 3, 3, requires_grad=True)
    gradient_penalty(critic, student, teacher).backward()
    assert student.grad is teacher.grad is None
    assert critic[0].weight.grad.abs().sum() > 0


def test_autocast_changes_nothing_about_the_penalty():
    critic = Critic(3, width=8)
    for attention in (critic.attention1, critic.attention2):
        torch.nn.init.ones_(attention.gamma)
    student, teacher = torch.randn(2, 2, 3, 64, 64)
    penalties = []
    for enabled in (False, True):
        twin = copy.deepcopy(critic)  # each call moves the power iteration on
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            penalties.append(gradient_penalty(twin, student, teacher, alpha=torch.tensor(0.3)))
    assert torch.equal(*penalties)


def test_rejects_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match=r"expects kind to be one of .*got 'lsgan'"):
        critic_loss(torch.zeros(1), torch.zeros(1), 'lsgan')


def test_a_narrow_critic_scores_as_well():
    critic = Critic(5, width=2)
    assert critic(torch.zeros(3, 5, 20, 30)).shape == (3,)
    assert sum(p.numel() for p in critic.parameters()) < 10_000


@pytest.mark.parametrize('width', [0, -2, 3])
def test_rejects_a_width_that_attention_cannot_take(width):
    with pytest.raises(ValueError, match=f'positive multiple of 2, got {width}'):
        Critic(5, width=width)
