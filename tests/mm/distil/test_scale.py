"""What is distilled stays the same in all the ways that a training can be run."""

import copy
import shutil
from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode

from kd_dense.losses import HolisticLoss
from kd_dense.mm.finite import Later
from kd_dense.mm.hooks import critic as critic_hook
from kd_dense.taps import TapError, Taps
from tests.mm import methods, toy
from tests.mm.distil.test_promises import assert_equal_states
from tests.mm.hooks.test_critic import HOOK, Recorder, critic_of, term, weights_moved

BOTH = ['cwd', 'cwd-detector']  # a segmenter and a detector, each with a term that has an adapter
ITERATIONS = 3
SGD = dict(type='SGD', lr=1e-2)


def settings(method, **others):
    """A training in which the same numbers are computed every time."""
    return dict(
        param_scheduler=None,
        optim_wrapper=dict(optimizer=SGD),
        default_hooks=dict(checkpoint=None, logger=None),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=methods.scenes(method),
        ),
        **others,
    )


class Losses(Hook):
    """Keeps the values of the terms, iteration by iteration."""

    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append({k: float(v) for k, v in outputs.items() if 'loss_kd' in k})


def train(model, method, work_dir, **others):
    """Train a model, or one from a config, and return it with the values of its terms."""
    losses = Losses()
    chosen = settings(method)
    chosen.update(others, custom_hooks=[losses, *others.get('custom_hooks', [])])
    chosen['default_hooks'] = {**chosen['default_hooks'], **others.get('default_hooks', {})}
    runner = toy.runner(model, work_dir, chosen.pop('max_iters', ITERATIONS), **chosen)
    runner.train()
    return runner, losses.values


def assert_same(plain, other, tolerance=1e-4):
    """Values of the terms and parameters, within rounding."""
    (a, ours), (b, theirs) = plain, other
    assert len(ours) == len(theirs)
    assert all(ours)
    for x, y in zip(ours, theirs, strict=True):
        assert y == pytest.approx(x, rel=tolerance)
    a, b = (dict(runner.model.named_parameters()) for runner in (a, b))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=tolerance, atol=1e-6), name


@pytest.fixture(scope='module', params=BOTH)
def plain(request, tmp_path_factory):
    """The training that all others are compared with."""
    method = request.param
    return method, train(methods.distilled(method), method, tmp_path_factory.mktemp('plain'))


class TestActivationCheckpointing:
    def test_blocks_of_the_backbone(self, plain, tmp_path):
        method, expected = plain
        config = methods.distilled(method)
        config.student.backbone.with_cp = True
        assert_same(expected, train(config, method, tmp_path))

    def test_modules_by_the_runner(self, plain, tmp_path):
        method, expected = plain
        modules = ['backbone.layer3', 'backbone.layer4']
        cfg = dict(activation_checkpointing=modules)
        assert_same(expected, train(methods.distilled(method), method, tmp_path, cfg=cfg))

    def test_a_tap_inside_is_an_error(self, tmp_path):
        config = methods.distilled('cwd')
        config.terms = dict(inner=dict(tap='backbone.layer4.0', loss=toy.CWD))
        with pytest.raises(TapError, match=r"'inner': .*'backbone\.layer4\.0'.*checkpointing"):
            train(config, 'cwd', tmp_path, cfg=dict(activation_checkpointing=['backbone.layer4']))

    def test_a_tap_inside_a_checkpointed_block_is_an_error(self, tmp_path):
        config = methods.distilled('cwd')
        config.student.backbone.with_cp = True
        config.terms = dict(inner=dict(tap='backbone.layer4.0.conv2', loss=toy.CWD))
        with pytest.raises(TapError, match=r"'inner': .*'backbone\.layer4\.0\.conv2'.*checkpoint"):
            train(config, 'cwd', tmp_path)


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.long
    @pytest.mark.parametrize('backend', ['eager', 'inductor'])
    def test_the_step_by_the_runner(self, plain, tmp_path, backend):
        if backend == 'inductor' and not any(map(shutil.which, ('c++', 'g++', 'clang++'))):
            pytest.skip('inductor needs a C++ compiler')
        method, expected = plain
        cfg = dict(compile=dict(backend=backend))
        found = train(methods.distilled(method), method, tmp_path, cfg=cfg)
        assert_same(expected, found, tolerance=1e-3 if backend == 'inductor' else 1e-4)

    def test_a_part_with_a_tap_inside(self, plain, tmp_path):
        method, expected = plain
        torch.manual_seed(0)
        config = methods.distilled(method)
        inner = 'backbone.layer4' if method == 'cwd' else 'neck'

        class Compile(Hook):
            def before_train(self, runner):
                runner.model.backbone = torch.compile(runner.model.backbone, backend='eager')

        found = train(config, method, tmp_path, custom_hooks=[Compile()])
        runner, values = found
        assert inner in {t.student_tap for t in runner.model.kd.values()}
        assert any('_orig_mod' in name for name, _ in runner.model.named_parameters())
        runner.model.backbone = runner.model.backbone._orig_mod
        assert_same(expected, (runner, values))


class TestNamesOfTaps:
    """Wrappers that trainings put around parts of a model change no name of a tap."""

    @pytest.fixture
    def model(self):
        block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        return nn.Sequential(block, nn.Conv2d(4, 2, 1))

    @pytest.mark.parametrize('wrap', [
        pytest.param(lambda m: torch.compile(m, backend='eager'), id='compile'),
        pytest.param(checkpoint_wrapper, id='checkpointing'),
        pytest.param(lambda m: checkpoint_wrapper(checkpoint_wrapper(m)), id='twice'),
    ])  # fmt: skip
    @pytest.mark.parametrize('tap', ['0', '0.1', '0.*', '0.2.forward'])
    def test_go_through(self, model, wrap, tap):
        x = torch.randn(1, 3, 4, 4)
        taps = Taps([tap])
        with taps.on(model):
            model(x)
        expected = taps[tap]
        model[0] = wrap(model[0])
        with taps.on(model):
            model(x)
        assert len(expected) == len(taps[tap])
        assert all(torch.equal(a, b) for a, b in zip(expected, taps[tap], strict=True))

    def test_a_wrong_one_is_still_wrong(self, model):
        model[0] = checkpoint_wrapper(model[0])
        with pytest.raises(TapError, match=r"there is no tap '0\.7'"), Taps(['0.7']).on(model):
            pass


class TestAverageOfTheWeights:
    def test_shares_the_teacher_and_never_runs_it(self, plain, tmp_path, monkeypatch):
        method, expected = plain
        ran = []

        class Watch(Hook):
            def before_train(self, runner):
                teacher = runner.model.kd_plan.teacher
                ema = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
                assert ema.ema_model.module.kd_plan.teacher is teacher
                run = teacher.run
                monkeypatch.setattr(
                    teacher, 'run', lambda *args: (ran.append(runner.iter), run(*args))
                )

            def before_val(self, runner):
                ran.append('validation')

        data = settings(method)['train_dataloader']
        found = train(
            methods.distilled(method), method, tmp_path,
            custom_hooks=[Watch(), dict(type='EMAHook')],
            val_dataloader=data, val_cfg=dict(), val_evaluator=dict(type=Nothing),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=2),
        )  # fmt: skip
        assert ran == [0, 1, 'validation', 2, 'validation']
        assert_same(expected, found, tolerance=0)


class Nothing:
    """Evaluates nothing."""

    dataset_meta = None

    def process(self, data_samples, data_batch=None):
        pass

    def evaluate(self, size):
        return {}


@pytest.fixture
def amp(monkeypatch):
    """mmengine asserts that there is a GPU; autocast and a GradScaler work without one."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = partial(torch.amp.GradScaler, device='cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)


@pytest.mark.usefixtures('amp')
class TestGradScaler:
    # The arithmetic is float32, so that the scale is all that differs.
    def wrapper(self, **scale):
        return dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=SGD, loss_scale=scale)

    @pytest.fixture
    def exact(self, monkeypatch):
        off = partial(torch.autocast, 'cpu', enabled=False)
        monkeypatch.setattr('mmengine.runner.amp.autocast', off)

    def config(self):
        config = methods.distilled('cwd')
        loss = dict(kind='hinge', preprocess='tanh', weight=1.0)
        config.terms = {**config.terms, **term(loss=loss)}
        return config

    def train(self, tmp_path, **others):
        recorder = Recorder()
        others['custom_hooks'] = [dict(HOOK, optimizer=dict(type='SGD', lr=1.0)), recorder]
        return *train(self.config(), 'cwd', tmp_path, **others), recorder.states

    @pytest.mark.usefixtures('exact')
    def test_changes_neither_the_terms_nor_the_critic(self, tmp_path):
        plain, values, critics = self.train(tmp_path / 'plain')
        wrapper = self.wrapper(init_scale=1024.0)
        scaled, others, same = self.train(tmp_path / 'scaled', optim_wrapper=wrapper)
        assert_same((plain, values), (scaled, others))
        assert weights_moved(critics[0], critics[1])
        for a, b in zip(critics, same, strict=True):
            assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)

    @pytest.mark.usefixtures('exact')
    def test_gradients_that_overflow_skip_the_students_step_alone(self, tmp_path):
        wrapper = self.wrapper(init_scale=2.0**127, backoff_factor=2.0**-120)
        students, config = [], self.config()
        config.terms[
            'logits' if 'logits' in config.terms else next(iter(config.terms))
        ].loss.weight = 1e4

        class Keep(Hook):
            def after_train_iter(self, runner, *args, **kwargs):
                students.append(copy.deepcopy(runner.model.backbone.state_dict()))

        recorder = Recorder()
        hooks = [dict(HOOK, optimizer=dict(type='SGD', lr=1.0)), recorder, Keep()]
        runner = toy.runner(
            config, tmp_path, ITERATIONS, **settings('cwd', custom_hooks=hooks)
            | dict(optim_wrapper=wrapper)
        )  # fmt: skip
        runner.model.init_weights()
        before = copy.deepcopy(critic_of(runner).state_dict())
        start = copy.deepcopy(runner.model.backbone.state_dict())
        runner.model.init_weights = lambda: None
        runner.train()
        assert not weights_moved(start, students[0])
        assert weights_moved(students[0], students[1])
        assert weights_moved(before, recorder.states[0])
        assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**7


class Slow(Later):
    """An answer that takes three iterations, as it may on a GPU."""

    def send(self, values):
        super().send(values)
        self.left = 3

    def receive(self):
        self.left = getattr(self, 'left', 0) - 1
        return None if self.left > 0 else super().receive()


class TestACriticThatOverflowsOnAGpu:
    @pytest.fixture(autouse=True)
    def slow(self, monkeypatch):
        monkeypatch.setattr(critic_hook, 'Later', Slow)
        backward = HolisticLoss.critic_backward
        self.calls = 0

        def overflow(loss, share):
            value = backward(loss, share)
            if self.calls == 1:  # once, while another answer is on its way
                loss.critic.last.weight.grad[0, 0, 0, 0] = torch.inf
            self.calls += 1
            return value

        monkeypatch.setattr(HolisticLoss, 'critic_backward', overflow)

    def run(self, tmp_path, max_iters, interval=99):
        recorder = Recorder()
        config = toy.distilled(terms=term(loss=dict(kind='hinge')))
        runner = toy.runner(
            config, tmp_path, max_iters, custom_hooks=[HOOK, recorder], default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=interval, by_epoch=False,
                                save_last=False)),
        )  # fmt: skip
        with pytest.raises(FloatingPointError, match=r'critic \(kd\.holistic.*is not finite'):
            runner.train()
        return recorder.states, list(tmp_path.glob('*.pth'))

    def test_stops_when_the_answer_is_there(self, tmp_path):
        states, checkpoints = self.run(tmp_path, 20)
        assert 2 < len(states) < 10
        assert all(v.isfinite().all() for state in states for v in state.values())
        assert not checkpoints

    def test_before_a_checkpoint_is_written(self, tmp_path):
        states, checkpoints = self.run(tmp_path, 20, interval=3)
        assert len(states) <= 3
        assert not checkpoints

    def test_at_the_end_at_the_latest(self, tmp_path):
        states, checkpoints = self.run(tmp_path, 2)
        assert len(states) == 2
        assert not checkpoints


class NoValues(TorchDispatchMode):
    """Refuses to tell Python what a tensor holds, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default,
                            torch.ops.aten.nonzero.default), f'{func} waits'  # fmt: skip
        return func(*args, **(kwargs or {}))


def test_a_step_of_the_critic_waits_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(critic_hook, 'Later', Slow)
    step, steps = critic_hook.CriticHook._step, []

    def watched(hook, optimizer, done):
        with NoValues():
            step(hook, optimizer, done)
        steps.append(done)

    monkeypatch.setattr(critic_hook.CriticHook, '_step', watched)
    hook = dict(HOOK, optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
    monkeypatch.setattr(Slow, 'receive', lambda self: None)
    toy.runner(toy.distilled(terms=term()), tmp_path, 2, custom_hooks=[hook]).train()
    assert len(steps) == 2
    with pytest.raises(AssertionError, match=r'_local_scalar_dense\.default waits'), NoValues():
        float(torch.ones(()))


class TestACriticInTheFlexibleRunner:
    def train(self, folder, resume=False, cut=None):
        class PowerCut(Hook):
            def before_train_iter(self, runner, *args, **kwargs):
                if runner.iter == cut:
                    raise KeyboardInterrupt('power cut')

        runner = FlexibleRunner(
            model=methods.distilled('skd'), work_dir=str(folder),
            strategy=dict(type='SingleDeviceStrategy'),
            train_dataloader=settings('skd')['train_dataloader'], resume=resume,
            train_cfg=dict(by_epoch=False, max_iters=4, val_interval=10**6),
            optim_wrapper=dict(optimizer=SGD), custom_hooks=[HOOK, PowerCut()],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)),
            randomness=dict(seed=0), log_level='ERROR', default_scope='mmengine',
            experiment_name=f'{folder.name}{resume}',
        )  # fmt: skip
        runner.train()
        return runner.model.state_dict()

    def test_a_resumed_training_is_the_one_that_was_not_stopped(self, tmp_path):
        whole = self.train(tmp_path / 'whole')
        with pytest.raises(KeyboardInterrupt, match='power cut'):
            self.train(tmp_path / 'stopped', cut=3)
        assert_equal_states(self.train(tmp_path / 'stopped', resume=True), whole)

    def test_a_checkpoint_without_its_state_is_an_error(self, tmp_path):
        with pytest.raises(KeyboardInterrupt, match='power cut'):
            self.train(tmp_path, cut=3)
        path = tmp_path / 'iter_2.pth'
        saved = torch.load(path, weights_only=False)
        del saved['kd_dense_critics']
        torch.save(saved, path)
        with pytest.raises(ValueError, match=r'has no .kd_dense_critics.*load_from'):
            self.train(tmp_path, resume=True)


class TestSyncBN:
    @pytest.mark.parametrize('config', [toy.distilled(), toy.distilled_detector()])
    def test_conversion_leaves_names_taps_and_teacher(self, config):
        model = toy.build(config)
        before = [name for name, _ in model.named_parameters()]
        scenes = toy.SegScenes() if hasattr(model, 'decode_head') else toy.DetScenes()
        assert convert_sync_batchnorm(model) is model
        assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        teacher = model.kd_plan.teacher.model
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in teacher.modules())
        assert before == [name for name, _ in model.named_parameters()]
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.eval()  # which runs on a CPU
        model.train = lambda mode=True: model
        assert any(float(v) > 0 for k, v in toy.losses(model, scenes).items() if 'loss_kd' in k)

    def test_is_reverted_for_one_process(self, tmp_path):
        config = toy.distilled(student=toy.segmenter(dropout=0.0))
        plain = train(config, 'cwd', tmp_path / 'plain')
        sync = copy.deepcopy(config)
        sync.student.backbone.norm_cfg = dict(type='SyncBN', requires_grad=True)
        found = train(sync, 'cwd', tmp_path / 'sync')
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in found[0].model.modules())
        assert_same(plain, found)


class TestAccumulation:
    def test_is_a_larger_batch(self, tmp_path):
        """Two half batches move the weights as the whole one does.

        (In a detector they do not: its own losses divide by the boxes of a batch.)
        """
        method = 'cwd'
        loader = settings(method)['train_dataloader']
        whole, _ = train(
            methods.distilled(method), method, tmp_path / 'whole', max_iters=2,
            train_dataloader={**loader, 'batch_size': 4},
        )  # fmt: skip
        halves, _ = train(
            methods.distilled(method), method, tmp_path / 'halves', max_iters=4,
            optim_wrapper=dict(optimizer=SGD, accumulative_counts=2),
        )  # fmt: skip
        for (name, a), b in zip(
            whole.model.named_parameters(), halves.model.parameters(), strict=True
        ):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), name
