"""What is said in the first iterations of a training, and that nothing else comes of it."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub

import kd_dense.mm.distil.first_steps as first_steps
from kd_dense.mm.distil.first_steps import ITERATIONS, split_losses
from tests.mm import toy

TEACHER = 'the loss of the teacher on the first batch'


@pytest.fixture(autouse=True)
def hub(log):
    """Where the iteration is looked up: a new one, as for a new training."""
    hub = MessageHub.get_instance(f'hub{id(log)}')
    yield hub
    MessageHub._instance_dict.pop(hub.instance_name)


def steps(model, count=ITERATIONS, scenes=None):
    for _ in range(count):
        toy.losses(model, scenes)


def trained(model):
    """Give a teacher that is untrained the loss of one that is not."""
    teacher = model.kd_plan.teacher.model
    teacher.loss = lambda *args: dict(loss_ce=torch.tensor(0.01))
    return model


def test_a_teacher_that_has_learnt_nothing(log):
    steps(toy.build(toy.distilled()), 2)
    assert log().count(TEACHER) == 1
    assert 'kd_dense check CONFIG' in log()


@pytest.mark.parametrize(
    ('config', 'scenes'),
    [(toy.distilled, None), (toy.distilled_detector, toy.DetScenes())],
    ids=['segmenter', 'detector'],
)
def test_the_losses_of_the_first_batch_are_compared(monkeypatch, config, scenes):
    found = []
    monkeypatch.setattr(first_steps, '_compare', lambda *one: found.append(one))
    model = toy.build(config())
    inputs, samples = toy.batch(model, scenes)
    student = split_losses(model.train()(inputs, samples, mode='loss'))[0]
    with torch.no_grad():
        teacher = split_losses(model.kd_plan.teacher.model.loss(inputs, samples))[0]
    assert found == [('teacher', float(teacher), float(student.detach()))]


def test_a_share_that_has_nothing_to_go_by(log):
    term = dict(tap='backbone.layer4', loss=toy.CWD, share=1.0)
    student = toy.segmenter()
    student.decode_head.loss_decode = dict(type='mmseg.CrossEntropyLoss', loss_weight=0.0)
    model = trained(toy.build(toy.distilled(terms=dict(one=term), student=student)))
    for _ in range(ITERATIONS):
        losses = toy.losses(model)
        sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert log().count("term 'one' has a share (whole)") == 1
    assert 'it stays next to nothing' in log()


def test_a_share_is_not_weighed_as_a_loss(log):
    term = dict(tap='backbone.layer4', loss=toy.CWD, share=1e-6)
    model = trained(toy.build(toy.distilled(terms=dict(one=term))))
    for _ in range(ITERATIONS):
        losses = toy.losses(model)
        sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert 'has no effect' not in log()
    assert 'has a share' not in log()


def test_a_teacher_that_has_learnt_something(log):
    steps(trained(toy.build(toy.distilled())))
    assert TEACHER not in log()


def test_a_training_from_the_teacher_alone(log):
    """No loss of a task: nothing tells whether the teacher has learnt it."""
    student, teacher = toy.segmenter(), toy.segmenter(16)
    for config in (student, teacher):
        config.decode_head.loss_decode = dict(type='mmseg.CrossEntropyLoss', loss_weight=0.0)
    steps(toy.build(toy.distilled(student=student, teacher=dict(config=teacher, checkpoint=None))))
    assert TEACHER not in log()


def test_losses_that_cannot_be_compared(log):
    student = toy.segmenter()
    student.decode_head.loss_decode = dict(type='mmseg.CrossEntropyLoss', loss_weight=2.0)
    steps(toy.build(toy.distilled(student=student)), 1)
    assert TEACHER not in log()


def test_a_teacher_whose_loss_fails(log):
    model = toy.build(toy.distilled())
    model.kd_plan.teacher.model.decode_head.loss = None
    steps(model, 1)
    assert "teacher's own loss cannot be computed" in log()
    assert TEACHER not in log()


def test_a_student_with_weights_of_its_own(log):
    model = toy.build(toy.distilled())
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    steps(model, 1)
    assert TEACHER not in log()


@pytest.mark.parametrize(
    ('weight', 'expected'),
    [(1e6, 'no part in the training'), (1e-6, 'no effect on it'), (3.0, '')],
)
def test_scale_of_a_term(log, weight, expected):
    model = trained(toy.build(toy.distilled(terms=toy.logits_term(weight=weight))))
    steps(model, ITERATIONS - 1)
    assert 'term ' not in log()
    steps(model)
    assert log().count("term 'logits'") == bool(expected)
    assert expected in log()


def test_a_schedule_that_begins_low_is_not_a_low_weight(log, hub):
    hub.update_info('max_iters', 10**9)
    terms = toy.logits_term()
    terms['logits']['schedule'] = dict(warmup=10**8)
    model = trained(toy.build(toy.distilled(terms=terms)))
    hub.update_info('iter', 0)
    steps(model, 1)
    for iteration in range(1, ITERATIONS):
        hub.update_info('iter', iteration)
        steps(model, 1)
    assert 'term ' not in log()


def test_a_critic_that_has_learnt_nothing_is_not_weighed(log):
    loss = dict(type='HolisticLoss', weight=1e-9, width=4)
    model = toy.build(
        toy.distilled(terms=dict(holistic=dict(tap='decode_head.conv_seg', loss=loss)))
    )
    for _ in range(ITERATIONS):
        steps(model, 1)
        model.kd.holistic.loss.critic_backward()
    assert "term 'holistic'" not in log()


def test_a_resumed_training_is_not_watched(log, hub):
    hub.update_info('iter', 3)
    steps(toy.build(toy.distilled(terms=toy.logits_term(weight=1e-6))))
    assert TEACHER not in log()
    assert 'term ' not in log()


def test_without_gradient_it_is_not_training(log):
    model = toy.build(toy.distilled())
    with torch.no_grad():
        steps(model, 1)
    assert TEACHER not in log()
    steps(model, 1)
    assert TEACHER in log()


def test_nothing_is_left_to_do_after_the_first_iterations(monkeypatch):
    model = toy.build(toy.distilled())
    steps(model)
    monkeypatch.setattr(first_steps, 'split_losses', pytest.fail)
    steps(model, 1)


def test_a_switch(log):
    model = toy.build(toy.distilled(checks=False, terms=toy.logits_term(weight=1e-6)))
    assert model.kd_plan.first_steps is None
    steps(model)
    assert TEACHER not in log()
    assert 'term ' not in log()


def test_processes_do_not_wait_for_each_other(monkeypatch):
    """One may fail where another does not: a sum over all of them would never end."""
    seen = []
    model = toy.build(toy.distilled())
    teacher = model.kd_plan.teacher.model
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    teacher.loss = lambda *args: seen.append(torch.distributed.is_initialized()) or {}
    inputs, samples = toy.batch(model)
    model.kd_plan.first_steps.before(model, inputs, samples)
    assert seen == [False]


@pytest.mark.parametrize('kind', ['segmenter', 'detector'])
def test_the_training_is_the_same_bit_for_bit(kind, tmp_path):
    config = toy.distilled if kind == 'segmenter' else toy.distilled_detector
    others = {}
    if kind == 'detector':
        loader = dict(batch_size=2, num_workers=0, dataset=toy.DetScenes(),
                      sampler=dict(type='InfiniteSampler', shuffle=True))  # fmt: skip
        others = dict(train_dataloader=loader)
    states = []
    for checks in (True, False):
        runner = toy.runner(config(checks=checks), tmp_path / str(checks), max_iters=3, **others)
        runner.train()
        assert (runner.model.kd_plan.first_steps is not None) == checks
        states.append(runner.model.state_dict())
        states.append(runner.model.kd_plan.teacher.model.state_dict())
    for ours, theirs in ((states[0], states[2]), (states[1], states[3])):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_buffers_of_the_teacher_stay(log):
    """Some losses count what they have seen."""
    model = toy.build(toy.distilled())
    teacher = model.kd_plan.teacher.model
    teacher.register_buffer('seen', torch.zeros(()))

    def loss(*args):
        teacher.seen += 1
        return dict(loss_ce=torch.tensor(9.0))

    teacher.loss = loss
    steps(model, 1)
    assert TEACHER in log()
    assert teacher.seen == 0


def test_losses_are_summed_by_term():
    losses = {
        'decode.loss_ce': torch.tensor([1.0, 3.0]),
        'loss_cls': [torch.tensor(1.0), torch.tensor(2.0)],
        'decode.acc_seg': torch.tensor(90.0),
        'loss_kd_fgd.foreground': torch.tensor(4.0),
        'loss_kd_fgd.background': torch.tensor(5.0),
        'loss_kd_cwd': torch.tensor(6.0),
    }
    task, terms = split_losses(losses)
    assert task == 5.0
    assert terms == {'fgd': 9.0, 'cwd': 6.0}
    assert split_losses({'loss_kd_cwd': torch.tensor(1.0)})[0] == 0
