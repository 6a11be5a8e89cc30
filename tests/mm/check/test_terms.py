import pytest
from mmengine.config import Config

from kd_dense.losses import CWDLoss
from kd_dense.mm.check.finding import OK, WARNING, Subject
from kd_dense.mm.check.terms import _say_weight, _Weight
from kd_dense.mm.distil.term import Term


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
    _say_weight(subject, 'x', term, [_Weight(1.0, ratio, agreement)], 1.0)
    [found] = subject.findings
    assert found.status == status
    assert found.remedy.startswith(remedy)
    assert bool(found.remedy) == bool(remedy)
