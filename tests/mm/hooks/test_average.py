"""The teacher that is the student's running average: when and how it moves."""

import copy

import pytest
import torch
from mmengine.hooks import Hook

from kd_dense.mm.hooks.average import KEY
from kd_dense.mm.teachers import average
from tests.mm import toy

HOOK = dict(type='kd_dense.AverageHook')


def config(**fields):
    return toy.distilled(teacher=dict(type='ema', **fields) if fields else 'ema')


class Watch(Hook):
    """Keeps a weight of the student and of its average, from iteration to iteration."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.student, self.average = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.student:
            self.student.append(runner.model.decode_head.conv_seg.weight.detach().clone())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = runner.model
        self.student.append(model.decode_head.conv_seg.weight.detach().clone())
        self.average.append(model.kd_plan.teacher.model.decode_head.conv_seg.weight.clone())


def watched(config, work_dir, **others):
    watch = Watch()
    runner = toy.runner(config, work_dir, custom_hooks=[HOOK, watch], **others)
    runner.train()
    return watch, runner


def test_it_is_the_mean_of_all_and_then_moves_by_the_momentum(tmp_path):
    watch, runner = watched(config(momentum=0.3), tmp_path, max_iters=5)
    expected = watch.student[0]
    for steps, (weight, found) in enumerate(zip(watch.student[1:], watch.average, strict=True), 1):
        expected = expected + max(0.3, 1 / (1 + steps)) * (weight - expected)
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(watch.average[1], torch.stack(watch.student[:3]).mean(0), atol=1e-6)
    assert not torch.allclose(watch.average[-1], watch.student[-1], atol=1e-4)
    ours, theirs = runner.model, runner.model.kd_plan.teacher.model
    for (name, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=False):
        assert torch.equal(a, b), name


def test_it_moves_once_for_a_step_of_accumulated_gradients(tmp_path):
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2)
    watch, runner = watched(config(), tmp_path, optim_wrapper=optim_wrapper, param_scheduler=None)
    first, second, third, _ = watch.average
    assert torch.equal(first, watch.student[0])
    assert torch.equal(second, third)
    assert not torch.equal(first, second)
    assert runner.model.kd_plan.teacher.average.steps == 3  # the start is one


def test_it_starts_from_weights_that_are_loaded(tmp_path):
    bare = toy.build(toy.segmenter(), seed=1)
    torch.save({'state_dict': bare.state_dict()}, tmp_path / 'bare.pth')
    watch, _ = watched(config(), tmp_path, max_iters=2, load_from=str(tmp_path / 'bare.pth'))
    assert torch.equal(watch.student[0], bare.decode_head.conv_seg.weight)
    assert torch.allclose(watch.average[0], (watch.student[0] + watch.student[1]) / 2)


def test_in_the_checkpoint_it_stands_beside_the_student(tmp_path):
    watch, _ = watched(config(), tmp_path)
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    saved = checkpoint[KEY]['teacher']
    assert torch.equal(saved['module.decode_head.conv_seg.weight'], watch.average[-1])
    own = checkpoint['state_dict']['decode_head.conv_seg.weight']
    assert torch.equal(own, watch.student[-1])


def test_a_checkpoint_without_it_is_not_resumed(tmp_path):
    toy.runner(toy.distilled(), tmp_path).train()
    runner = toy.runner(config(), tmp_path, custom_hooks=[HOOK], resume=True)
    with pytest.raises(ValueError, match='has no average of the student'):
        runner.train()


def test_a_student_that_nothing_moves_its_average_of_is_stopped(monkeypatch):
    monkeypatch.setattr(average, 'PATIENCE', 2)
    model = toy.build(config())
    for _ in range(2):
        toy.losses(model)
    with pytest.raises(RuntimeError, match=r"custom_hooks=\[dict\(type='kd_dense.AverageHook'\)"):
        toy.losses(model)


def test_a_plain_loop_moves_it_itself():
    model = toy.build(config())
    toy.losses(model)
    teacher = model.kd_plan.teacher
    before = copy.deepcopy(teacher.model.decode_head.conv_seg.weight)
    with torch.no_grad():
        model.decode_head.conv_seg.weight.add_(1)
    teacher.move(model)
    assert torch.allclose(teacher.model.decode_head.conv_seg.weight, before + 0.5)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(momentun=0.1), "unknown field 'momentun', did you mean 'momentum'"),
        (dict(momentum=1.0), 'between 0 and 1'),
        (dict(momentum=True), 'between 0 and 1'),
        (dict(gamma=0), 'at least 1'),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        toy.build(config(**fields))


def test_nothing_is_inherited_from_it():
    with pytest.raises(ValueError, match='there is none but the student itself or its average'):
        toy.build(toy.distilled(teacher='ema', inherit=['decode_head']))
