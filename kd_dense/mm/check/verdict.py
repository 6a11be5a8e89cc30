"""The last check: whether the training will make a better student, as far as can be said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kd_dense.losses import LDLoss, RotatedLDLoss
from kd_dense.mm.check.finding import OK, WARNING, Finding, Subject
from kd_dense.mm.check.terms import LEADS
from kd_dense.mm.distil.fields import WHOLE
from kd_dense.mm.teachers.several import has_own_weights

__all__ = ['check_verdict']

HELPS, HARMS, UNKNOWN = 'will help', 'will not help', 'cannot say'
# What made a student of our study better by more than chance, pulled by share, and none worse. Of
# other losses it has too little, or students that lost (docs/results/study.md); a test compares.
GAINED = (
    'ADLLoss',
    'BCKDLoss',
    'CWDLoss',
    'CrossKDLoss',
    'DeFeatLoss',
    'DISTLoss',
    'FGDLoss',
    'FitNetsLoss',
    'FRSLoss',
    'MGDLoss',
    'PGDBoxLoss',
    'PGDClassLoss',
    'PKDLoss',
    'ReviewKDLoss',
)
# Together, the terms pull at most this much more strongly than the task.
STRONGEST = 3.0


def check_verdict(subject: Subject) -> None:
    """Sum up what the scores and the terms have shown.

    A training is expected to help where the teacher leads, and where each term is of a kind that
    gained in our study, and pulls the way that the task does, or only as strongly as a share lets
    it. In that study no such training made a student worse (docs/check.md).
    """
    found = {
        name: [f for f in subject.findings if f.check == name] for name in ('scores', 'terms')
    }
    bad = [f for name in found for f in found[name] if f.status != OK and _is_judged(f)]
    if bad:
        reasons = '; '.join(dict.fromkeys(_reason(f) for f in bad))
        subject.say(WARNING, f'{HARMS}: {reasons}', 'see above', verdict=HARMS)
        return
    open_questions = [*_open_questions(subject, found['terms'])]
    if open_questions:
        subject.say(
            OK,
            f'{UNKNOWN}: {"; ".join(open_questions)}',
            'train the student alone as well, and compare',
            verdict=UNKNOWN,
        )
        return
    scores = next((f.figures for f in found['scores'] if 'teacher' in f.figures), {})
    known = bool(scores.get('student_is_trained'))
    rest = (
        '' if known else ', if it is better than the student trained alone (--student-checkpoint)'
    )
    subject.say(OK, f'{HELPS}: the teacher leads and no term is off scale{rest}', verdict=HELPS)


def _is_judged(finding: Finding) -> bool:
    """Whether a warning is about what is learnt, and not about what could not be measured."""
    return 'term' in finding.figures or 'teacher' in finding.figures


def _reason(finding: Finding) -> str:
    term = finding.figures.get('term')
    what = finding.message.rpartition(': ')[2]
    return f'{term}: {what}' if term else what


def _open_questions(subject: Subject, terms: list[Finding]) -> Iterator[str]:
    if not subject.teacher_is_loaded:
        yield 'the teacher is without its weights'
    scored = any(f.check == 'scores' and 'teacher' in f.figures for f in subject.findings)
    if not scored and subject.model and not any(map(has_own_weights, subject.teachers.values())):
        yield 'there is no teacher but the student itself'
    elif not scored:
        yield 'the teacher was not scored'
    if not subject.has_task:
        yield 'the student learns from the teacher alone'
    for few in (f.figures for f in terms if 'of_images' in f.figures):
        yield f'{few["of_images"]} needs {few["least"]} images, and a process has {few["images"]}'
    judged = [f.figures for f in terms if 'term' in f.figures]
    if not judged:
        yield 'no term was weighed'
    for figures in judged:
        if 'ratio' in figures and not figures['agreement'] >= LEADS:
            ratio = f'{figures["ratio"]:.2g} times as strongly as the task'
            yield f'{figures["term"]} pulls {ratio}, and elsewhere'
    for name, term in getattr(subject.model, 'kd', {}).items():
        kind = type(term.loss).__name__
        parts = {*term.shares} - {WHOLE}
        if isinstance(term.loss, (LDLoss, RotatedLDLoss)):
            if term.loss.settings['kd_weight'] > 0 and (not parts or 'kd' in parts):
                yield f'{name} compares classes as a softmax, and the head trains each by itself'
        elif kind not in GAINED:
            yield f'{kind} ({name}) has not gained in our study, or was not in it'
    if sum(map(_share, judged)) > STRONGEST:
        yield f'the shares of the terms add up to more than {STRONGEST:g}'


def _share(figures: Mapping[str, Any]) -> float:
    """What a term was promised of the task's pull; nothing, where it has a weight."""
    return float(sum(figures.get('shares', {}).values()))
