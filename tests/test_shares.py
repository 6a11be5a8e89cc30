"""Weights that set themselves."""

import copy
import gc
import weakref

import pytest
import torch

from kd_dense.shares import Share, ShareMeter, ends_of_chains
from tests.losses.test_no_sync import Called, Dispatched


def step(share, task, loss, factor=1.0, scale=1.0):
    """One step on a map, with gradients of the task and of a loss by each number."""
    x = torch.ones(4, requires_grad=True)
    y, meter = 2 * x, ShareMeter()
    value = loss * meter.alias(share, y).sum()
    value = meter.weigh(share, value, factor) * value
    (scale * (task * y.sum() + value)).backward()
    return x.grad


class TestShare:
    @pytest.mark.parametrize('share', [0, -1, float('nan'), float('inf'), True, '1'])
    def test_refuses_what_is_no_share(self, share):
        with pytest.raises(ValueError, match='expected a share > 0'):
            Share(share)

    def test_is_the_geometric_mean_of_steps(self):
        share = Share(2.0)
        for square in (1.0, 16.0):
            share.update(torch.tensor([square, 1.0]))
        torch.testing.assert_close(share.weight(torch.tensor(1.0)), torch.tensor(4.0))

    def test_forgets_slowly(self):
        share = Share(1.0)
        for square in [1.0] * 300 + [100.0] * 300:
            share.update(torch.tensor([square, 1.0]))
        assert 9.9 < share.weight(torch.tensor(1.0)) <= 10

    @pytest.mark.parametrize('square', [[0.0, 1.0], [1.0, 0.0], [float('inf'), 1.0]])
    def test_leaves_out_a_step_that_says_nothing(self, square):
        share = Share(1.0)
        share.update(torch.tensor([9.0, 1.0]))
        share.update(torch.tensor(square))
        torch.testing.assert_close(share.weight(torch.tensor(1.0)), torch.tensor(3.0))


class TestMeter:
    def test_makes_nobody_wait_for_the_device(self):
        share = Share(0.5)
        for _ in range(3):  # the first one measures alone
            with Called(), Dispatched():
                step(share, task=3.0, loss=600.0)
        assert share.steps == 3

    def test_first_step_measures_and_teaches_next_to_nothing(self):
        share = Share(1.0)
        grad = step(share, task=3.0, loss=600.0)
        assert 2 * 3.0 < grad[0] < 2 * 3.0 * 1.001
        torch.testing.assert_close(share.log_ratio.exp(), torch.tensor(3.0 / 600.0))

    def test_from_then_on_the_loss_pulls_its_share(self):
        share = Share(0.5)
        step(share, task=3.0, loss=600.0)
        grad = step(share, task=3.0, loss=600.0)
        torch.testing.assert_close(grad, torch.full((4,), 2 * 3.0 * 1.5))

    def test_a_schedule_comes_on_top_and_is_not_undone(self):
        share = Share(1.0)
        for factor in (1.0, 0.25, 0.25):
            grad = step(share, task=1.0, loss=5.0, factor=factor)
        torch.testing.assert_close(grad, torch.full((4,), 2 * 1.25))

    def test_a_loss_scale_cancels(self):
        plain, scaled = Share(1.0), Share(1.0)
        for scale in (1.0, 1024.0, 65536.0):
            step(plain, 3.0, 7.0)
            step(scaled, 3.0, 7.0, scale=scale)
        torch.testing.assert_close(scaled.log_ratio, plain.log_ratio)

    def test_two_losses_on_one_map_are_told_apart(self):
        x = torch.ones(4, requires_grad=True)
        y, meter = 2 * x, ShareMeter()
        one, other = Share(1.0), Share(1.0)
        a, b = 2 * meter.alias(one, y).sum(), 8 * meter.alias(other, y).sum()
        total = meter.weigh(one, a) * a + meter.weigh(other, b) * b
        (4 * y.sum() + total).backward()
        torch.testing.assert_close(one.log_ratio.exp(), torch.tensor(2.0))
        torch.testing.assert_close(other.log_ratio.exp(), torch.tensor(0.5))

    def test_only_maps_that_the_loss_uses_count(self):
        x = torch.ones(4, requires_grad=True)
        y, z, share, meter = 2 * x, 3 * x, Share(1.0), ShareMeter()
        loss, _ = meter.alias(share, y).sum(), meter.alias(share, z)
        (y.sum() + 1000 * z.sum() + meter.weigh(share, loss) * loss).backward()
        torch.testing.assert_close(share.log_ratio.exp(), torch.tensor(1.0))

    def test_a_map_that_the_task_does_not_use_leaves_the_share_unknown(self):
        x = torch.ones(4, requires_grad=True)
        share, meter = Share(1.0), ShareMeter()
        loss = meter.alias(share, 2 * x).sum()
        (meter.weigh(share, loss) * loss).backward()
        assert share.steps == 0
        assert 0 < share.weight(loss) < 1e-3  # as before

    def test_state_is_all_that_it_is(self):
        share, other = Share(1.0), Share(1.0)
        for _ in range(3):
            step(share, 3.0, 7.0)
        other.load_state_dict(copy.deepcopy(share.state_dict()))
        torch.testing.assert_close(step(other, 3.0, 7.0), step(share, 3.0, 7.0), rtol=0, atol=0)
        torch.testing.assert_close(other.log_ratio, share.log_ratio, rtol=0, atol=0)

    def test_a_checkpoint_from_before_there_was_a_newest_step(self):
        share, other = Share(1.0), Share(1.0)
        step(share, 3.0, 7.0)
        state = {k: v for k, v in share.state_dict().items() if k != 'newest'}
        other.load_state_dict(state)
        torch.testing.assert_close(other.newest, share.log_ratio)

    def test_a_gradient_that_grows_is_not_outrun(self):
        share, grown = Share(1.0), 1e-6
        for _ in range(100):
            weight = share.weight(torch.ones(()))
            share.update(torch.tensor([1.0, grown**2]), weight)
            grown *= 1.2
        assert share.pull < 2.5

    def test_a_step_without_backward_pass_is_forgotten(self):
        share, meter = Share(1.0), ShareMeter()
        meter.weigh(share, torch.ones((), requires_grad=True))
        meter.start()
        x = torch.ones((), requires_grad=True)
        (2 * x).backward()
        assert share.steps == 0

    def test_maps_go_with_the_step(self):
        """Without a collection of garbage, which comes when it likes."""
        gc.disable()
        try:
            x, share, meter = torch.ones(4, requires_grad=True), Share(1.0), ShareMeter()
            y = 2 * x
            gone = weakref.ref(y)
            loss = meter.alias(share, y).sum()
            (y.sum() + meter.weigh(share, loss) * loss).backward()
            del y, loss
            assert gone() is None
        finally:
            gc.enable()


class TestEndsOfChains:
    def test_of_a_pyramid_with_levels_behind_others(self):
        x = torch.ones(2, requires_grad=True)
        lateral = [x * 2, x * 3]
        p3, p4 = lateral[0].exp() + lateral[1], lateral[1].exp()
        p5 = p4.sin().cos()
        assert ends_of_chains([p3, p4, p5]) == [True, False, True]

    def test_of_maps_of_one_operation_and_of_none(self):
        x = torch.ones(2, 3, requires_grad=True)
        assert ends_of_chains([*x.unbind()]) == [True, True]
        assert ends_of_chains([x.detach(), x.exp()]) == [True, True]
