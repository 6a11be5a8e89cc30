"""What each method brought, in a cell of the table of methods."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks.study.cells import SETS
from benchmarks.study.page import ALONE, Line, kind_of

__all__ = ['brought', 'with_column']

NAMES = {'camvid': 'CamVid', 'neudet': 'NEU-DET', 'bccd': 'BCCD', 'scenes': 'Scenes'}
FEW_LABELS = {name for name, data in SETS.items() if data.whole}  # a question of their own
METRICS = {'segmentation': 'mIoU', 'detection': 'AP'}
# Nothing is said of short trainings with weights that set themselves: they are the rule.
NOTES = {'plateau': 'long', 'published': 'published'}


def brought(method: str, lines: Sequence[Line]) -> str:
    """Its mean differences to the student alone, set by set; by its newest teacher.

    Examples:
        >>> run = dict(set='camvid', task='segmentation', schedule='short', seed=0, equals='')
        >>> alone = dict(run, method='alone', weights='-', test=40.0, teacher_iterations=None)
        >>> cwd = dict(run, method='cwd', weights='published', test=42.0, teacher_iterations=9)
        >>> brought('cwd', [alone, cwd])
        'CamVid +2.0 mIoU (published)'
    """
    found: dict[tuple[str, str, str, str], dict[int, list[float]]] = {}
    for x in lines:
        if x['method'] != method or x['set'] in FEW_LABELS:
            continue
        alone = [
            y['test']
            for y in lines
            if kind_of(y) == ALONE
            and all(y[k] == x[k] for k in ('set', 'task', 'schedule', 'seed'))
        ]
        if alone:
            where = (x['set'], x['task'], x['schedule'], x['weights'])
            by_teacher = found.setdefault(where, {})
            by_teacher.setdefault(x['teacher_iterations'] or 0, []).append(x['test'] - alone[0])
    words = []
    for (name, task, *rest), by_teacher in sorted(found.items()):
        notes = ', '.join(NOTES[word] for word in rest if word in NOTES)
        gain = f'{mean(by_teacher[max(by_teacher)]):+.1f} {METRICS[task]}'
        words.append(f'{NAMES.get(name, name)} {gain}' + (f' ({notes})' if notes else ''))
    return '; '.join(words)


def with_column(text: str, lines: Sequence[Line]) -> str:
    """The page of methods with the last column of its table as the lines have it."""
    rows = []
    for row in text.splitlines():
        if row.startswith('| [`'):
            cells = row.split('|')
            cells[-2] = f' {brought(row.split("`")[1], lines)} '
            row = '|'.join(cells)
        rows.append(row)
    return '\n'.join(rows) + '\n'
