from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.zoo import trial
from tests.miniature import ROOT


def plan(teacher):
    guest = SimpleNamespace(teacher=SimpleNamespace(model=teacher))
    return SimpleNamespace(running={'teacher': guest})


class Broken(nn.Linear):
    """A model with one fault."""

    def __init__(self, fault):
        super().__init__(3, 1)
        self.fault = fault
        self.data_preprocessor = lambda data, training: {}

    def init_weights(self):
        if self.fault == 'teacher':
            self.kd = nn.Identity()
            self.kd_plan = plan(nn.Linear(1, 1))

    def forward(self, mode):
        loss = self.weight.square().sum()
        if self.fault == 'infinite':
            loss = loss / 0
        if self.fault == 'flat':
            loss = loss * 0
        losses = {'loss': loss}
        if self.fault == 'teacher':
            losses['loss_kd_x'] = loss
            self.kd_plan.running['teacher'].teacher.model.weight.data += 1
        if self.fault == 'detached':
            losses['loss_kd_x'] = loss * 0
        return losses

    def parse_losses(self, losses):
        return sum(losses.values()), {name: value.detach() for name, value in losses.items()}


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('infinite', 'not finite: loss'),
        ('flat', 'no gradient flows into the student'),
        ('teacher', 'the teacher has changed: 0.weight'),
        ('detached', "no gradient flows from the term 'x' into the student"),
    ],
)
def test_finds_faults(monkeypatch, fault, message):
    monkeypatch.setattr(trial, 'make_batch', lambda *_: {})
    model = Broken(fault)
    if fault == 'detached':
        model.kd = nn.Identity()
        model.kd_plan = plan(nn.Identity())
    with pytest.raises(ValueError, match=message):
        trial.train(model, None, (8, 8), steps=2)
    assert torch.is_grad_enabled()


class TestStudent:
    PAIRS = [(ROOT / f'{name}.py', ROOT / 'teacher.py') for name in 'abc']

    def train(self, monkeypatch, **problems):
        def train_student(segments, student, teacher):
            record = dict(student=student.name, teacher=teacher.name)
            reason = problems.get(student.stem)
            return record | (dict(ok=False, reason=reason) if reason else dict(size=(64, 64)))

        monkeypatch.setattr(trial, 'train_student', train_student)
        return trial.train_plain(False, self.PAIRS)

    def test_is_the_smallest_that_trains(self, monkeypatch):
        assert self.train(monkeypatch)['student'] == 'a.py'
        record = self.train(monkeypatch, a='x', b='y')
        assert record['student'] == 'c.py'
        assert record['passed_over'] == {'a.py': 'x', 'b.py': 'y'}

    def test_is_the_smallest_if_none_trains(self, monkeypatch):
        record = self.train(monkeypatch, a='x', b='y', c='z')
        assert (record['ok'], record['student'], record['reason']) == (False, 'a.py', 'x')
