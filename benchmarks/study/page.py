"""The page of the study, from its lines alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from benchmarks.study.cells import SETS

__all__ = ['ALONE', 'Line', 'kind_of', 'page', 'paired']

Line = Mapping[str, Any]
Kind = tuple[str, str, str, int]  # method, weights, equals, iterations of the teacher
ALONE: Kind = ('alone', '-', '', 0)
HEAD = """# Does it make a better student?

Every run of the study, none left out; [study.jsonl](study.jsonl) has them line by line, with the
commit that made each. The module `benchmarks.study` is the command: it runs what has no line yet,
and with `--page docs/results/study.md` it writes this page.

Scores are mIoU (segmentation) and AP (detection) in percent, on test pictures; `val` is on
pictures that neither train nor test. `gain` is the mean over seeds of the difference to the
student alone of the same seed and schedule, with the half width of its 95 % interval (Student's t;
with three seeds it is 2.5 times the spread of the differences). `gap` is the share of the distance
between the student alone and its teacher. `as X` is the student alone for the CPU time of X.
`check` is the verdict of `kd_dense check` before the training (of seed 0); where a line has
`checked`, it was asked again with `--check-again`, at that commit. Other work ran beside many of
the runs, which makes CPU seconds up to three times what they are on a quiet machine.

Methods are presets, with their published weights or with shares, and what else was tried, by the
names in `benchmarks/study/methods.py`. Left out are runs by which sizes of pictures and the
teachers' schedules were chosen, and those of weights that did not do what they are to: shares on
stages of a backbone before `cda5ecb`, where a loss fed itself; and before `be1ddbb` DSD on CamVid
(20.4), whose gradient grew faster than its weight fell, and CrossKD on NEU-DET (13.7) and Scenes
(58.7), whose gradient was measured where nothing passes.
"""


def page(lines: Sequence[Line]) -> str:
    """The page, as Markdown."""
    parts = [HEAD]
    for name, task in dict.fromkeys((x['set'], x['task']) for x in lines):
        own = [x for x in lines if (x['set'], x['task']) == (name, task)]
        teachers = {x['iterations']: x for x in own if x['method'] == 'teacher'}
        parts.append(f'## {name}, {task}\n')
        parts += _labels(name)
        parts += [
            f'Teacher `{x["teacher"]}`{_trained(x["iterations"])}: val {x["val"]:.1f}, '
            f'test {x["test"]:.1f}. Student `{x["student"]}`.\n'
            for x in teachers.values()
        ]
        students = [x for x in own if x['method'] != 'teacher']
        parts += [
            _table([x for x in students if x['schedule'] == schedule], schedule, teachers)
            for schedule in dict.fromkeys(x['schedule'] for x in students)
        ]
    return '\n'.join(parts)


def _labels(name: str) -> list[str]:
    data = SETS.get(name)
    if data is None or not data.whole:
        return []
    count = len(range(0, data.pictures, data.labelled))
    return [
        f'Of the {data.pictures:,} training pictures of {data.whole}, {count} have labels. '
        'Without a word behind it, a method sees these alone, and so did its teacher; '
        '`pictures`: as many of all training pictures are added to each batch, without labels; '
        "`pseudo`: the same, and the term takes the teacher's predictions as labels; `full`: the "
        f'teacher is that of {data.whole}, which has seen all labels.\n'
    ]


def _trained(iterations: int) -> str:
    return f', {iterations:,} iterations' if iterations else ''


def _table(lines: Sequence[Line], schedule: str, teachers: Mapping[int, Line]) -> str:
    alone = {x['seed']: x for x in lines if kind_of(x) == ALONE}
    newest = max(teachers, default=0)
    rows = []
    for kind in sorted({kind_of(x) for x in lines}, key=_order):
        runs = {x['seed']: x for x in lines if kind_of(x) == kind}
        taught = kind[-1] or newest
        teacher = teachers[taught]['test'] if taught in teachers else math.nan
        scores = [x['test'] for x in runs.values()]
        differences = [x['test'] - alone[s]['test'] for s, x in runs.items() if s in alone]
        rows.append(
            f'| {_spelt(kind, newest)} | {len(runs)} | {runs[min(runs)]["iterations"]:,} '
            f'| {mean(x["cpu_s"] for x in runs.values()):.0f} '
            f'| {mean(x["val"] for x in runs.values()):.1f} | {mean(scores):.1f}{_spread(scores)} '
            + ('| | ' if kind == ALONE else _gain(differences, alone, teacher))
            + f'| {next((v for x in runs.values() if (v := x.get("verdict"))), "")} |'
        )
    head = '| student | seeds | iterations | CPU s | val | test | gain | gap | check |\n'
    table = f'### {schedule}\n\n{head}|-|-|-|-|-|-|-|-|-|\n' + '\n'.join(rows) + '\n'
    return '\n'.join([table, *_for_the_same_time(lines)])


def _for_the_same_time(lines: Sequence[Line]) -> Iterator[str]:
    """How far methods are ahead of the student alone that trained for their CPU time."""
    for equals in dict.fromkeys(x['equals'] for x in lines if x['equals']):
        method = equals.removesuffix(' shares')
        weights = ('shares',) if method != equals else ('-', 'published')
        theirs = {
            x['seed']: x['test']
            for x in lines
            if x['method'] == method and x['weights'] in weights and not x['equals']
        }
        alone = {x['seed']: x['test'] for x in lines if x['equals'] == equals}
        differences = [theirs[seed] - alone[seed] for seed in theirs.keys() & alone.keys()]
        if not differences:
            continue
        middle, half = paired(differences)
        width = '' if math.isnan(half) else f' +- {half:.1f}'
        seeds = f'{len(differences)} seed' + 's' * (len(differences) > 1)
        yield (
            f'{equals} against the student alone for the same CPU time: '
            f'{middle:+.1f}{width} ({seeds}).\n'
        )


def kind_of(x: Line) -> Kind:
    """What the runs of one row have in common."""
    return x['method'], x['weights'], x['equals'], x['teacher_iterations'] or 0


def _order(kind: Kind) -> tuple[Any, ...]:
    method, weights, equals, taught = kind
    places = ['alone', 'inherit']
    about = equals.partition(' ')[0] or method
    return (places.index(about) if about in places else 2, about, bool(equals), weights, taught)


def _spelt(kind: Kind, newest: int) -> str:
    method, weights, equals, taught = kind
    if equals:
        return f'alone, as {equals}'
    own = method if weights in ('-', 'published') else f'{method}, {weights}'
    return own if taught in (0, newest) else f'{own} (teacher of {taught:,} iterations)'


def _spread(scores: Sequence[float]) -> str:
    return f' +- {stdev(scores):.1f}' if len(scores) > 1 else ''


def _gain(differences: Sequence[float], alone: Mapping[int, Line], teacher: float) -> str:
    if not differences:
        return '| | '
    middle, half = paired(differences)
    base = mean(x['test'] for x in alone.values())
    gap = f'{100 * middle / (teacher - base):.0f} %' if teacher > base else ''
    width = '' if math.isnan(half) else f' +- {half:.1f}'
    return f'| {middle:+.1f}{width} | {gap} '


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences, and the half width of its 95 % interval.

    Examples:
        >>> middle, half = paired([1.0, 2.0, 3.0])
        >>> round(middle, 2), round(half, 2)
        (2.0, 2.48)
    """
    count = len(differences)
    if count < 2:
        return mean(differences), math.nan
    return mean(differences), float(t.ppf(0.975, count - 1)) * stdev(differences) / math.sqrt(
        count
    )
