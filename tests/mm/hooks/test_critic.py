import copy
from unittest import mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper

from kd_dense.losses import HolisticLoss
from kd_dense.mm.run.export import export
from tests.mm import toy
from tests.mm.distil.test_promises import assert_equal_states, student_state, train
from tests.mm.distil.test_training import scalars

HOOK = dict(type='kd_dense.CriticHook')
# A gradient shows in the weights as it is.
PLAIN = {**HOOK, 'optimizer': dict(type='SGD', lr=1.0), 'power': 0}


def term(**fields):
    loss = dict(type='HolisticLoss', **fields.pop('loss', {}))
    return dict(holistic=dict(tap='decode_head.conv_seg', loss=loss, **fields))


def critic_of(runner):
    model = getattr(runner.model, 'module', runner.model)
    return model.kd.holistic.loss.critic


class Recorder(Hook):
    """Copies the critic's state after every iteration."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.states = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.states.append(copy.deepcopy(critic_of(runner).state_dict()))


def weights_moved(before, after):
    return [n for n in before if n.endswith(('weight', 'bias')) and not before[n].equal(after[n])]


class TestTraining:
    @pytest.mark.parametrize('kind', ['wgan-gp', 'hinge'])
    def test_trains_the_critic_and_logs_its_loss(self, tmp_path, kind):
        config = toy.distilled(terms=term(loss=dict(kind=kind)))
        runner = toy.runner(config, tmp_path, custom_hooks=[HOOK])
        before = copy.deepcopy(critic_of(runner).state_dict())
        runner.train()
        moved = weights_moved(before, critic_of(runner).state_dict())
        # A Wasserstein critic's last bias cancels; nothing else stays.
        assert len(moved) >= len([n for n in before if n.endswith(('weight', 'bias'))]) - 1
        assert all('critic_holistic' in entry for entry in scalars(tmp_path))
        assert all('loss_kd_holistic' in entry for entry in scalars(tmp_path))
        assert all(p.grad is None for p in critic_of(runner).parameters())
        assert not any(p.requires_grad for p in critic_of(runner).parameters())

    def test_a_step_is_the_gradient_times_the_rate(self, tmp_path):
        config = toy.distilled(terms=term(loss=dict(kind='hinge', preprocess='tanh', weight=1.0)))
        runner = toy.runner(
            config, tmp_path, 4, custom_hooks=[dict(PLAIN, power=0.9), Recorder()],
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        )  # fmt: skip
        loss, grads = runner.model.kd.holistic.loss, []
        backward = loss.critic_backward

        def watched(share):
            value = backward(share)
            grads.append(loss.critic.last.weight.grad.clone())
            return value

        loss.critic_backward = watched
        states = [copy.deepcopy(loss.critic.state_dict())]
        runner.train()
        states += runner._hooks[-1].states
        for i, grad in enumerate(grads):
            step = states[i]['last.weight'] - states[i + 1]['last.weight']
            assert torch.allclose(step, (1 - i / 4) ** 0.9 * grad, rtol=1e-3, atol=1e-6)

    def test_the_schedule_of_the_term_counts(self, tmp_path):
        config = toy.distilled(terms=term(schedule=dict(stop=2)))
        recorder = Recorder()
        toy.runner(config, tmp_path, custom_hooks=[HOOK, recorder]).train()
        a, b, c, d = recorder.states
        assert weights_moved(a, b)
        assert_equal_states(b, c)
        assert_equal_states(c, d)

    def test_several_maps_have_a_critic_each(self, tmp_path):
        terms = dict(fpn=dict(tap='neck[:2]', loss=dict(type='HolisticLoss', kind='hinge')))
        loader = dict(batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
                      dataset=toy.DetScenes())  # fmt: skip
        runner = toy.runner(toy.distilled_detector(terms=terms), tmp_path, 2, custom_hooks=[HOOK],
                            train_dataloader=loader)  # fmt: skip
        before = [copy.deepcopy(m.critic.state_dict()) for m in runner.model.kd.fpn.losses]
        runner.train()
        assert len(before) == 2
        for loss, old in zip(runner.model.kd.fpn.losses, before, strict=True):
            assert weights_moved(old, loss.critic.state_dict())

    def test_with_an_average_of_the_weights(self, tmp_path):
        config = toy.distilled(terms=term())
        runner = toy.runner(config, tmp_path, custom_hooks=[dict(type='EMAHook'), HOOK])
        runner.train()
        assert scalars(tmp_path)[-1]['critic_holistic'] != 0

    def test_nothing_where_there_is_no_critic(self, tmp_path):
        runner = toy.runner(toy.distilled(), tmp_path, 2, custom_hooks=[HOOK])
        runner.train()
        checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
        assert 'kd_dense_critics' not in checkpoint

    def test_rejects_a_negative_power(self):
        from kd_dense.mm import CriticHook

        with pytest.raises(ValueError, match='power >= 0, got power=-1'):
            CriticHook(power=-1)


class TestErrors:
    def test_the_forgotten_hook(self, tmp_path):
        runner = toy.runner(toy.distilled(terms=term()), tmp_path)
        with pytest.raises(RuntimeError, match=r"custom_hooks=.*type='kd_dense.CriticHook'"):
            runner.train()
        assert runner.iter == 1

    def test_a_gradient_that_is_not_finite(self, tmp_path, monkeypatch):
        backward = HolisticLoss.critic_backward

        def overflow(self, share):
            value = backward(self, share)
            self.critic.last.weight.grad[0, 0, 0, 0] = torch.inf
            return value

        monkeypatch.setattr(HolisticLoss, 'critic_backward', overflow)
        runner = toy.runner(toy.distilled(terms=term()), tmp_path, custom_hooks=[HOOK])
        with pytest.raises(FloatingPointError, match=r'critic \(kd\.holistic.*is not finite'):
            runner.train()

    def test_resuming_from_a_training_without_it(self, tmp_path):
        config = toy.distilled(terms=term(loss=dict(weight=0.0)))
        toy.runner(config, tmp_path, 2).train()
        runner = toy.runner(toy.distilled(terms=term()), tmp_path, custom_hooks=[HOOK],
                            resume=True)  # fmt: skip
        with pytest.raises(ValueError, match=r'has no .kd_dense_critics.*load_from'):
            runner.train()


class TestPromises:
    def test_weight_zero_is_plain_training(self, tmp_path):
        terms = term(loss=dict(weight=0.0))
        plain = train(toy.segmenter(), tmp_path / 'plain').model
        runner = toy.runner(toy.distilled(terms=terms), tmp_path / 'off', custom_hooks=[HOOK])
        before = copy.deepcopy(critic_of(runner).state_dict())
        runner.train()
        assert_equal_states(plain.state_dict(), student_state(runner.model))
        assert_equal_states(before, critic_of(runner).state_dict())

    @pytest.mark.parametrize('kind', ['wgan-gp', 'hinge'])
    def test_a_resumed_training_is_the_one_that_was_not_stopped(self, tmp_path, kind):
        hooks = [dict(type='kd_dense.RandomStateHook'), HOOK]

        class PowerCut(Hook):
            def before_train_iter(self, runner, *args, **kwargs):
                if runner.iter == 3:
                    raise KeyboardInterrupt('power cut')

        config = toy.distilled(terms=term(loss=dict(kind=kind)))
        stopped = toy.runner(config, tmp_path / 'stopped', custom_hooks=[*hooks, PowerCut()])
        with pytest.raises(KeyboardInterrupt, match='power cut'):
            stopped.train()
        resumed = toy.runner(config, tmp_path / 'stopped', custom_hooks=hooks, resume=True)
        resumed.train()
        whole = toy.runner(config, tmp_path / 'whole', custom_hooks=hooks)
        whole.train()
        assert resumed.iter == whole.iter == 4
        assert_equal_states(resumed.model.state_dict(), whole.model.state_dict())
        ends = [
            torch.load(tmp_path / name / 'iter_4.pth', weights_only=False)['kd_dense_critics']
            for name in ('stopped', 'whole')
        ]
        for a, b in zip(*(end['state'].values() for end in ends), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)

    def test_accumulation_is_a_larger_batch(self, tmp_path):
        def run(name, batch, iterations, counts):
            config = toy.distilled(
                group_norm(toy.segmenter(dropout=0.0)),
                dict(config=toy.segmenter(16), checkpoint=None),
                term(loss=dict(kind='hinge', preprocess='tanh', weight=1.0)),
            )
            recorder = Recorder()
            runner = toy.runner(
                config, tmp_path / name, iterations, custom_hooks=[PLAIN, recorder],
                param_scheduler=None, train_dataloader=dict(
                    batch_size=batch, num_workers=0, dataset=toy.SegScenes(augment=False),
                    sampler=dict(type='DefaultSampler', shuffle=False)),
                optim_wrapper=dict(
                    optimizer=dict(type='AdamW', lr=1e-3), accumulative_counts=counts),
            )  # fmt: skip
            converge(critic_of(runner))
            before = copy.deepcopy(critic_of(runner).state_dict())
            runner.train()
            return before, recorder.states

        before, (_, after_one) = run('one', 4, 2, 1)
        start, (first, second, _, accumulated) = run('two', 2, 4, 2)
        assert_equal_states(before, start)
        assert not weights_moved(start, first)
        assert weights_moved(first, second)
        for name in weights_moved(before, after_one):
            expected = after_one[name] - before[name]
            step = accumulated[name] - start[name]
            assert (step - expected).norm() <= 2e-3 * expected.norm(), name

    def test_float32_in_mixed_precision(self, tmp_path, monkeypatch):
        # mmengine asserts that there is a GPU; autocast to bfloat16 works without one.
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        runner = toy.runner(
            toy.distilled(terms=term()), tmp_path, custom_hooks=[HOOK],
            optim_wrapper=dict(
                type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.01)),
        )  # fmt: skip
        kinds = set()
        critic_of(runner).conv2.register_forward_hook(lambda m, x, y: kinds.add((y.dtype, 'out')))
        runner.model.decode_head.conv_seg.register_forward_hook(
            lambda m, x, y: kinds.add((y.dtype, 'maps'))
        )
        runner.train()
        assert kinds == {(torch.float32, 'out'), (torch.bfloat16, 'maps')}
        assert scalars(tmp_path)[-1]['critic_holistic'] != 0

    def test_nothing_of_it_is_in_an_exported_student(self, tmp_path):
        toy.runner(toy.distilled(terms=term()), tmp_path, 2, custom_hooks=[HOOK]).train()
        trained = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
        assert 'kd_dense_critics' in trained
        assert any('critic' in name for name in trained['state_dict'])
        export(tmp_path / 'iter_2.pth', tmp_path / 'out.pth')
        exported = torch.load(tmp_path / 'out.pth', weights_only=True)
        assert exported.keys() == {'meta', 'state_dict'}
        assert exported['state_dict'].keys() == toy.build(toy.segmenter()).state_dict().keys()


def group_norm(student):
    """A student whose normalisation does not depend on how a batch is split."""
    student.backbone.norm_cfg = student.decode_head.norm_cfg = dict(type='GN', num_groups=2)
    return student


def converge(critic):
    """Weights whose power iteration has ended, so that the number of calls does not matter."""
    with torch.no_grad():
        for conv in (critic.conv1, critic.conv2, critic.conv3, critic.conv4):
            u, s, v = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
            s[0] *= 20
            conv.weight.copy_((u * s @ v).view_as(conv.weight))
            conv.weight_u.copy_(u[:, 0])


def train_a_part(rank, world_size, work_dir):
    """Train on two batches of four pictures, in this process and perhaps another.

    tests/mm/distil/test_distributed.py compares the two.
    """
    found = {}
    for name, loss in {
        'hinge': dict(kind='hinge', preprocess='tanh'),
        'wgan-gp': dict(kind='wgan-gp', preprocess='batch_norm'),
    }.items():
        config = toy.distilled(
            group_norm(toy.segmenter(dropout=0.0)),
            dict(config=toy.segmenter(16), checkpoint=None),
            term(loss=dict(weight=1.0, **loss)),
        )
        runner = toy.runner(
            config, f'{work_dir}/{name}', 2, param_scheduler=None, default_hooks=dict(
                checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
            custom_hooks=[dict(PLAIN, optimizer=dict(type='SGD', lr=1e-3, momentum=0.9))],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-2)),
            train_dataloader=dict(
                batch_size=4 // world_size, num_workers=0, dataset=toy.SegScenes(augment=False),
                sampler=dict(type='DefaultSampler', shuffle=False)),
            launcher='pytorch' if world_size > 1 else 'none', cfg=dict(model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)),
        )  # fmt: skip
        assert (runner.world_size, runner.rank) == (world_size, rank)
        before = copy.deepcopy(critic_of(runner).state_dict())
        share = mock.patch(
            'torch.rand', lambda n, *others, **kwargs: torch.full((n, 1, 1, 1), 0.4)
        )
        with share:
            runner.train()
        student = dict(getattr(runner.model, 'module', runner.model).named_parameters())
        found[name] = (
            {n: v.numpy() for n, v in before.items()},
            {n: v.numpy() for n, v in critic_of(runner).state_dict().items()},
            {n: p.detach().numpy() for n, p in student.items() if not n.startswith('kd.')},
        )
    return found
