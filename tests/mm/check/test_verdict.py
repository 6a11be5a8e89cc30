"""Whether a training will make a better student, from what the other checks have found."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config

from kd_dense.losses import LDLoss, PKDLoss, SPLoss
from kd_dense.mm.check.finding import ERROR, OK, WARNING, Finding, Subject
from kd_dense.mm.check.verdict import check_verdict

LEADS = Finding(
    'scores', OK, 'the teacher leads',
    figures=dict(teacher=dict(mIoU=60.0), student=dict(mIoU=40.0), student_is_trained=True),
)  # fmt: skip


def term(status=OK, agreement=0.9, ratio=1.0, note=''):
    figures = dict(term='cwd', value=1.0, task=1.0, ratio=ratio, agreement=agreement)
    return Finding('terms', status, f'cwd: 1{note}', figures=figures)


def shared(**shares):
    return Finding('terms', OK, 'fgd: pulls', figures=dict(term='fgd', shares=shares))


def verdict(*findings, **fields):
    subject = Subject(Config(), findings=[*findings], check='verdict', **fields)
    check_verdict(subject)
    return subject.findings[-1]


def with_ld(kd_weight, **shares):
    term = SimpleNamespace(loss=LDLoss(kd_weight=kd_weight), shares=shares)
    return SimpleNamespace(kd=dict(ld=term))


@pytest.mark.parametrize(('loss', 'says'), [(SPLoss, 'cannot say'), (PKDLoss, 'will help')])
def test_what_the_study_knows_of_a_loss(loss, says):
    model = SimpleNamespace(kd=dict(one=SimpleNamespace(loss=loss(), shares={})))
    found = verdict(LEADS, term(), model=model)
    assert found.figures['verdict'] == says
    assert ('SPLoss (one) has not gained in our study' in found.message) == (loss is SPLoss)


def test_helps_where_the_teacher_leads_and_terms_are_in_scale():
    for one in (term(), shared(whole=1.0)):
        found = verdict(LEADS, one)
        assert found.figures['verdict'] == 'will help'
        assert found.message == 'will help: the teacher leads and no term is off scale'
        assert verdict(LEADS, one, model=with_ld(0.0)).message == found.message
        assert verdict(LEADS, one, model=with_ld(10.0, main=1.0)).message == found.message


def test_a_student_that_was_not_trained_leaves_a_condition():
    untrained = LEADS._replace(figures={**LEADS.figures, 'student_is_trained': False})
    assert 'if it is better than the student trained alone' in verdict(untrained, term()).message


@pytest.mark.parametrize(
    ('findings', 'reason'),
    [
        ((LEADS, term(WARNING, 0.001, 900.0, ': it drowns the task')), 'cwd: it drowns the task'),
        (
            (LEADS._replace(status=ERROR, message='teacher 1: nothing can be learnt from it'),
             term()),
            'nothing can be learnt from it',
        ),
    ],
    ids=['drowns', 'trails'],
)  # fmt: skip
def test_does_not_help(findings, reason):
    found = verdict(*findings)
    assert (found.status, found.figures['verdict']) == (WARNING, 'will not help')
    assert found.message.endswith(reason)


@pytest.mark.parametrize(
    ('findings', 'fields', 'reason'),
    [
        ((LEADS, term(agreement=0.3, ratio=3.5)), {}, 'cwd pulls 3.5 times as strongly'),
        ((LEADS, shared(a=2.0, b=1.5)), {}, 'the shares of the terms add up'),
        ((term(),), {}, 'the teacher was not scored'),
        ((LEADS,), {}, 'no term was weighed'),
        ((LEADS, term()), dict(unloaded={'teacher'}), 'the teacher is without its weights'),
        ((LEADS, term()), dict(has_task=False), 'learns from the teacher alone'),
        ((LEADS, term()), dict(model=with_ld(10.0)), 'ld compares classes as a softmax'),
        ((LEADS, term()), dict(model=with_ld(10.0, whole=1.0)), 'ld compares classes'),
    ],
)
def test_cannot_say(findings, fields, reason):
    found = verdict(*findings, **fields)
    assert (found.status, found.figures['verdict']) == (OK, 'cannot say')
    assert reason in found.message


def test_a_warning_that_is_not_about_what_is_learnt_is_none_of_its_business():
    other = Finding('scores', WARNING, "the config's own metric cannot score 50 pictures: x")
    assert verdict(other, term()).figures['verdict'] == 'cannot say'
