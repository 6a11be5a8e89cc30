"""Each method in a training of the Runner: in full and in mixed precision, with its critic."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook

from kd_dense.mm.cost.steps import Trained, build_to_try, preprocessed
from tests.gpu.card import waits
from tests.mm import methods, toy
from tests.mm.distil.test_scale import SGD, Losses, settings
from tests.mm.distil.test_training import scalars
from tests.mm.hooks.test_critic import HOOK, Recorder, critic_of, weights_moved

pytestmark = pytest.mark.gpu


def training(method, work_dir, iterations=4, hooks=(), optim_wrapper=None, **others):
    chosen = settings(method, custom_hooks=[HOOK, *hooks], **others)
    chosen['optim_wrapper'] = {'optimizer': SGD, **(optim_wrapper or {})}
    chosen['default_hooks'] = dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1))
    runner = toy.runner(methods.distilled(method), work_dir, iterations, **chosen)
    runner.model.init_weights()  # now, so that what moves later has been trained
    runner.model.init_weights = lambda: None
    return runner


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('method', methods.METHODS)
def test_each_method_trains(method, precision, tmp_path, device, amp):
    wrapper = {} if precision == 'float32' else amp(precision)
    iterations = 8 if wrapper else 4  # the first may find no scale yet
    runner = training(method, tmp_path, iterations, optim_wrapper=wrapper)
    model, found = runner.model, []
    for term in model.kd.values():
        term.register_forward_hook(lambda module, args, losses: found.extend(losses.values()))
    before = copy.deepcopy(model.state_dict())

    runner.train()

    teacher = model.kd_plan.teacher.model
    assert {p.device.type for m in (model, teacher) for p in m.parameters()} == {device}
    assert {(x.dtype, x.device.type) for x in found} == {(torch.float32, device)}
    logged = scalars(tmp_path)
    assert len(logged) == iterations
    for entry in logged:
        assert all(math.isfinite(v) for v in entry.values() if isinstance(v, float)), entry
    for name in model.kd:
        parts = [v for key, v in logged[0].items() if key.startswith(f'loss_kd_{name}')]
        assert sum(parts) != 0, name
    after = model.state_dict()
    assert weights_moved(before, after)
    assert all(value.isfinite().all() for value in after.values())
    if wrapper:
        assert runner.optim_wrapper.loss_scaler.get_scale() >= 1


@pytest.mark.parametrize('method', methods.METHODS)
def test_the_terms_are_those_of_the_cpu(method, tmp_path, device, exact):
    """The same weights and pictures: a step of the Runner on the GPU, and one without it."""
    losses = Losses()
    runner = training(method, tmp_path, 1, [losses])
    expected = copy.deepcopy(runner.model).cpu()
    runner.train()
    expected.kd_plan.teacher.model.cpu()
    found = toy.losses(expected, methods.scenes(method))
    assert losses.values[0]
    for name, value in losses.values[0].items():
        if 'holistic' not in name:  # its weights' norms were estimated once more
            assert value == pytest.approx(float(found[name]), rel=1e-3, abs=1e-6), name


class Students(Hook):
    """Copies the student's weights after every iteration."""

    def __init__(self):
        self.states = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.states.append(copy.deepcopy(runner.model.backbone.state_dict()))


class TestACriticBesideAScaledStudent:
    @pytest.fixture
    def train(self, tmp_path, device, amp):
        def run(**scale):
            critics, students = Recorder(), Students()
            wrapper = amp('float16', loss_scale=scale)
            runner = training('skd', tmp_path, 4, [critics, students], wrapper)
            critics.after_train_iter(runner)
            students.after_train_iter(runner)
            runner.train()
            return runner, critics.states, students.states

        return run

    def test_learns_in_float32(self, train, tmp_path):
        runner, critics, students = train(init_scale=256.0)
        for states in (critics, students):
            for before, after in pairwise(states):
                assert weights_moved(before, after)
        assert all(v.isfinite().all() for state in critics for v in state.values())
        assert all(entry['critic_holistic'] != 0 for entry in scalars(tmp_path))
        assert {p.dtype for p in critic_of(runner).parameters()} == {torch.float32}

    def test_learns_where_the_students_gradient_overflows(self, train):
        runner, critics, students = train(init_scale=2.0**127, backoff_factor=2.0**-120)
        assert not weights_moved(students[0], students[1])
        assert weights_moved(critics[0], critics[1])
        assert weights_moved(students[1], students[2])
        assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**7


def test_a_value_that_is_not_finite_stops_it(tmp_path, device):
    """A few steps later, when the answer has come from the GPU."""
    runner = training('cwd', tmp_path, 50)
    with torch.no_grad():
        runner.model.kd_plan.teacher.model.decode_head.conv_seg.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"tap 'decode_head\.conv_seg' is not finite"):
        runner.train()
    assert runner.iter < 49


def step(method, device, distilled):
    """A step of training, ready to be taken again and again."""
    config = methods.distilled(method)
    torch.manual_seed(0)
    model = build_to_try(config) if distilled else toy.build(config.student)
    trained = Trained(model, dict(type='OptimWrapper', optimizer=SGD), device)
    scenes = methods.scenes(method)
    data = [scenes[index] for index in (1, 2)]
    data = {key: [item[key] for item in data] for key in data[0]}
    batch = preprocessed(model, data)
    return lambda: trained.step(batch)


@pytest.mark.parametrize('method', methods.METHODS)
def test_distillation_waits_for_nothing(method, device):
    """The student's own losses wait; ours add no place and no time at which the host does."""
    found = {}
    for distilled in (False, True):
        call = step(method, device, distilled)
        for _ in range(3):  # what is made once may wait
            call()
        found[distilled] = waits(call, device)
    added = found[True] - found[False]
    own = {line: n for line, n in added.items() if 'mmengine/logging' not in line}
    assert not own
