"""What is said of a term beside the task, and where there is no task."""

import math

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.models import EncoderDecoder

from kd_dense import losses
from kd_dense.losses import CWDLoss
from kd_dense.mm.check.finding import OK, WARNING, Subject
from kd_dense.mm.check.terms import _say_weight, _Weight
from kd_dense.mm.check.verdict import check_verdict
from kd_dense.mm.distil.term import Term
from tests.mm.check.checking import of, run


@pytest.mark.parametrize(
    ('ratio', 'agreement', 'status', 'remedy'),
    [
        (
            300.0,
            0.9,
            WARNING,
            'model.terms.x.loss.weight=0.0067 makes its gradient as long as the',
        ),
        (90.0, 0.005, WARNING, 'model.terms.x.loss.weight=0.022 makes'),
        (
            10.0,
            0.15,
            OK,
            'should the student get worse than alone: model.terms.x.loss.weight=0.2 ',
        ),
        (10.0, 0.95, OK, ''),
        (1e-4, 1.0, WARNING, 'model.terms.x.loss.weight=2e+04 makes'),
        (0.0, 1.0, WARNING, 'it has no gradient on these batches'),
    ],
)
def test_what_a_term_weighs(ratio, agreement, status, remedy):
    subject = Subject(Config(), check='terms')
    term = Term('x', tap='neck', loss=dict(type='CWDLoss', weight=2.0))
    term.losses.append(CWDLoss(weight=2.0))
    _say_weight(subject, 'x', term, [_Weight(1.0, 1.0, ratio, agreement)], 1.0)
    [found] = subject.findings
    assert found.status == status
    assert found.remedy.startswith(remedy)
    assert bool(found.remedy) == bool(remedy)


def test_batches_without_anything_for_the_task_do_not_count():
    subject = Subject(Config(), check='terms')
    term = Term('x', tap='neck', loss=dict(type='CWDLoss'))
    term.losses.append(CWDLoss())
    empty, real = _Weight(9.0, 1.0, math.inf, 0.0), _Weight(1.0, 1.0, 1.0, 0.9)
    _say_weight(subject, 'x', term, [empty, real, empty], 1.0)
    assert subject.findings[0].figures['value'] == 1.0
    assert subject.findings[0].status == OK


def test_a_share_needs_no_other_weight():
    subject = Subject(Config(), check='terms')
    term = Term('x', tap='neck', loss=dict(type='CWDLoss'), share=0.5)
    term.losses.append(CWDLoss())
    _say_weight(subject, 'x', term, [_Weight(1e-3, 1.0, 1e-6, 0.9)], 1.0)
    [found] = subject.findings
    assert found.status == OK
    assert "a share of what the task's losses do (whole 0.5)" in found.message


@pytest.mark.parametrize(
    ('loss', 'batch', 'least'),
    [
        (losses.SPLoss(), 1, 2),
        (losses.PKTLoss(), 1, 2),
        (losses.CCKDLoss(), 1, 2),
        (losses.RelationLoss(over='images'), 1, 2),
        (losses.RKDLoss(), 2, 3),
        (losses.RKDLoss(), 3, None),
        (losses.SPLoss(), 2, None),
        (losses.RelationLoss(), 1, None),
        (losses.CrossImageLoss(), 1, None),
    ],
)
def test_what_relates_images_needs_some(loss, batch, least):
    config = Config(dict(train_dataloader=dict(batch_size=batch)))
    subject = Subject(config, check='terms')
    term = Term('x', tap='neck', loss=dict(type=type(loss).__name__))
    term.losses.append(loss)
    _say_weight(subject, 'x', term, [_Weight(1.0, 1.0, 1.0, 0.9)], 1.0)
    [found] = subject.findings
    assert found.status == (WARNING if least else OK)
    if least:
        assert f'relates images, of which a batch must have {least} in all' in found.message
        assert found.message.endswith('is 1' if batch == 1 else 'are 2')
        assert found.remedy.startswith(f'train_dataloader.batch_size={least} or more')
        subject.check = 'verdict'
        check_verdict(subject)
        assert f'x needs {least} images, and a process has {batch}' in subject.findings[1].message


class TestTheTeacherAlone:
    """Nothing but terms: the weights of the task's losses are 0, or it has none."""

    WEIGHT = dict(model__student__decode_head__loss_decode__loss_weight=0.0)

    def test_is_said(self, recipe):
        findings = run(recipe('seg_cwd', **self.WEIGHT))
        assert [found for found in findings if found.status != OK] == []
        task, *terms = of(findings, 'terms')
        assert 'the student learns from the teacher alone' in task.message
        assert [term.figures['term'] for term in terms] == ['logits', 'features']
        for term in terms:
            assert 'there is no task to weigh it against' in term.message
            assert 0 < term.figures['value'] < 100
            assert 1e-3 < term.figures['length'] < 1e3
            assert 'option' not in term.figures
            assert not term.remedy

    def test_what_no_term_trains(self, recipe):
        """A head behind the last tap stays as it starts, unless it is the teacher's."""
        config = recipe('seg_cwd', **self.WEIGHT)
        config.model.terms.pop('logits')
        [task, _] = of(run(config), 'terms')
        assert task.status == WARNING
        assert 'decode_head.conv_seg.weight' in task.figures['untrained']
        assert all(name.startswith('decode_head.') for name in task.figures['untrained'])
        assert 'tap' in task.remedy
        assert 'inherit' in task.remedy
        config.model.student = recipe('seg_teacher').model
        config.model.student.decode_head.loss_decode.loss_weight = 0.0
        config.model.inherit = ['decode_head']
        [task, _] = of(run(config), 'terms')
        assert task.status == OK

    def test_a_model_without_a_loss_of_its_own(self, recipe, monkeypatch):
        class Silent(EncoderDecoder):
            def loss(self, inputs, data_samples):
                super().loss(inputs, data_samples)
                return {}

        monkeypatch.setitem(MODELS._module_dict, 'Silent', Silent)
        findings = run(recipe('seg_cwd', model__student__type='mmengine.Silent'))
        assert [found for found in findings if found.status != OK] == []
        assert 'from the teacher alone' in of(findings, 'terms')[0].message
        assert 'without distillation' not in of(findings, 'cost').message
