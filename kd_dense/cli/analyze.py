"""Compare trainings by what they logged: scores, share of the gap closed, and each loss term.

    kd_dense analyze work_dirs/ALONE work_dirs/DISTILLED --teacher 41.0

Reads what mmengine writes into the work directory of a run, resumed or not; nothing is run again.
Writes analysis.png and analysis.md, and prints the table. Of an error the lower value is better:
the config of a run says so (``rule='less'`` beside ``save_best``), or its name, as rmse.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kd_dense.mm.check.ranking import SCORES, lower_is_better, main_score, watched
from kd_dense.mm.configs import RequestError

# Told apart by colour-blind people too (Okabe and Ito).
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', ':', '-.')
TASK = 'own losses'


class Run(NamedTuple):
    """What one training logged: lines of losses and lines of scores, by iteration.

    ``said`` is what its config says of the scores that it watches.
    """

    name: str
    losses: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    said: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Read the logs in the work directory of a run.

    Where a run was resumed, what it logged after that counts.

    Raises:
        RequestError: If there is no log, or nothing in it.
    """
    if not folder.is_dir():
        raise RequestError(f'{folder} is no folder: expected the work directory of a run')
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    if not files:
        raise RequestError(
            f'{folder} has no logs ({folder}/<time>/vis_data/scalars.json): expected the work '
            'directory of a run, as work_dirs/NAME'
        )
    losses: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for file in files:
        lines = [*_lines(file)]
        for kept, new in (
            (losses, [line for line in lines if 'loss' in line]),
            (scores, [line for line in lines if 'loss' not in line]),
        ):
            first = min((line['step'] for line in new), default=math.inf)
            kept[:] = [line for line in kept if line['step'] < first] + new
    if not losses and not scores:
        raise RequestError(f'{folder}: its logs are empty; did the run end before its first line?')
    said = [one for file in files[-1:] for one in _said(file.with_name('config.py'))]
    return Run(folder.resolve().name, losses, [*_by_iteration(scores, losses)], said)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """All lines of a log; the last one of a run that was killed may be cut off."""
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and 'step' in line:
            yield line


def _said(config: Path) -> Iterator[dict[str, Any]]:
    """What a logged config says of the scores that are watched; it is read, and never run."""
    try:
        tree = ast.parse(config.read_text())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            items = [(word.arg, word.value) for word in node.keywords]
        elif isinstance(node, ast.Dict):
            keys = [getattr(key, 'value', None) for key in node.keys]
            items = [*zip(keys, node.values, strict=True)]
        else:
            continue
        wanted = ('save_best', 'monitor', 'rule', 'less_keys')
        yield {name: _literal(value) for name, value in items if name in wanted}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # a name, or a call
        return None


def _by_iteration(
    scores: Sequence[Mapping[str, Any]], losses: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Where a training counts epochs, so do its scores; put the last iteration in place."""
    ends: dict[int, int] = {}
    for line in losses:
        if 'epoch' in line:
            ends[line['epoch']] = line['step']
    for score in scores:
        yield {**score, 'step': ends.get(score['step'], score['step'])}


def known_scores(runs: Sequence[Run]) -> list[str]:
    """The names of all scores, as they were logged."""
    names = (
        name
        for run in runs
        for line in run.scores
        for name, value in line.items()
        if isinstance(value, (int, float)) and name not in ('step', 'data_time', 'time')
    )
    return list(dict.fromkeys(names))


def choose_score(runs: Sequence[Run], wanted: str | None) -> str | None:
    """The name of the score to compare; none, if no run was evaluated.

    Raises:
        RequestError: If there is none of the name, or it is not clear which one is meant.
    """
    known = known_scores(runs)
    listed = ', '.join(sorted(known))
    if wanted is not None and wanted not in known:
        raise RequestError(f'no run logged {wanted!r}; there are {listed or "none"}')
    chosen = wanted or main_score(known, watched([run.said for run in runs], known))
    if known and chosen is None:
        raise RequestError(f'choose a score with --score: {listed}')
    return chosen


def falls(runs: Sequence[Run], score: str | None) -> bool:
    """Whether lower is better, by the configs of the runs or by the name."""
    said = watched([run.said for run in runs], known_scores(runs))
    return score is not None and lower_is_better(score, said)


def curve(run: Run, score: str) -> list[tuple[int, float]]:
    """Iterations and values of a score, in percent where mmdet logs a share."""
    scale = 100 if any(part in score.split('/') for part in ('coco', 'pascal_voc')) else 1
    found = [(line['step'], scale * line[score]) for line in run.scores if score in line]
    return [(step, value) for step, value in found if math.isfinite(value)]


def terms(line: Mapping[str, Any]) -> dict[str, float]:
    """The student's own losses together, and each term of the distillation."""
    found = {TASK: line['loss']}
    for name, value in line.items():
        if name.startswith('loss_kd_'):
            term = name.removeprefix('loss_kd_').partition('.')[0]
            found[term] = found.get(term, 0.0) + value
            found[TASK] -= value
    return found


def summarise(
    runs: Sequence[Run], score: str | None, teacher: float | None, lower: bool = False
) -> tuple[list[str], list[list[str]]]:
    """The table. Gains, and shares of the gap to the teacher, are against the first run."""
    header = ['run', f'best {titled(score or "score", lower)}', 'at', 'last', 'gain']
    if teacher is not None:
        header.append('of the gap')
    header += ['last loss', 'of it ours']
    curves = [curve(run, score) if score else [] for run in runs]
    choose = min if lower else max
    best = [choose((v for _, v in points), default=None) for points in curves]
    large = any(abs(v) >= 10 for points in curves for _, v in points)
    digits = 1 if large else 3  # of percent; of a share, or of an error in metres
    rows = []
    for run, points, value in zip(runs, curves, best, strict=True):
        row = [run.name]
        if value is None:
            row += ['never evaluated', '', '', '']
        else:
            step = next(s for s, v in points if v == value)
            row += [f'{value:.{digits}f}', str(step), f'{points[-1][1]:.{digits}f}']
            first = best[0]
            if first is None or run is runs[0]:
                row.append('')
            else:
                row.append(f'{first - value if lower else value - first:+.{digits}f}')
        if teacher is not None:
            row.append(_share(value, best[0], teacher, lower) if run is not runs[0] else '')
        found = terms(run.losses[-1]) if run.losses else {}
        total = sum(found.values())
        ours = total - found.get(TASK, 0.0)
        row += [f'{total:.3g}' if found else '', f'{ours / total:.0%}' if ours and total else '']
        rows.append(row)
    return header, rows


def titled(score: str, lower: bool) -> str:
    """The name of a score, with its direction where that is not the usual one."""
    return f'{score} (lower is better)' if lower else score


def _share(value: float | None, alone: float | None, teacher: float, lower: bool) -> str:
    if value is None or alone is None:
        return ''
    gap = alone - teacher if lower else teacher - alone
    return f'{(value - alone) / (teacher - alone):.0%}' if gap > 0 else 'no gap'


def draw(
    path: Path, runs: Sequence[Run], score: str | None, teacher: float | None, lower: bool = False
) -> None:
    """Draw the scores of all runs, and the losses of each."""
    panels = 1 + len(runs)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False)
    axes = [*grid.flat]
    _draw_scores(axes[0], runs, score, teacher, lower)
    for axis, run in zip(axes[1:], runs, strict=False):
        _draw_losses(axis, run)
    for axis in axes[panels:]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _style(index: int) -> dict[str, Any]:
    return dict(
        color=COLORS[index % len(COLORS)], ls=DASHES[index // len(COLORS) % len(DASHES)], lw=1.5
    )


def _draw_scores(
    axis: Axes, runs: Sequence[Run], score: str | None, teacher: float | None, lower: bool
) -> None:
    if score:
        for index, run in enumerate(runs):
            points = curve(run, score)
            if points:
                axis.plot(
                    *zip(*points, strict=True), marker='o', ms=3, label=run.name, **_style(index)
                )
    if teacher is not None:
        axis.axhline(teacher, color='#666666', ls='--', lw=1, label='teacher')
    label = titled(score, lower) if score else ''
    axis.set(xlabel='iteration', ylabel=label, title='validation')
    axis.grid(alpha=0.3)
    if not axis.lines:
        axis.text(0.5, 0.5, 'never evaluated', ha='center', transform=axis.transAxes)
    _legend(axis)


def _draw_losses(axis: Axes, run: Run) -> None:
    names = list(dict.fromkeys(name for line in run.losses for name in terms(line)))
    names.sort(key=lambda name: name != TASK)
    for index, name in enumerate(names):
        points = [(line['step'], terms(line).get(name, 0.0)) for line in run.losses]
        # A critic's verdict may be negative, which a logarithmic axis has no place for.
        negative = sum(value for _, value in points) < 0
        points = [(step, abs(value)) for step, value in points if value]
        if points:
            label = f'-{name}' if negative else name
            axis.plot(*zip(*points, strict=True), label=label, **_style(index - 1 if index else 6))
    if axis.lines:
        axis.set_yscale('log')
    axis.set(xlabel='iteration', ylabel='weighted loss', title=f'losses of {run.name}')
    axis.grid(alpha=0.3)
    _legend(axis)


def _legend(axis: Axes) -> None:
    """Name the lines below the picture, where they hide nothing."""
    if axis.lines:
        axis.legend(fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'runs', nargs='+', type=Path, metavar='RUN', help='work directories; the baseline first'
    )
    parser.add_argument(
        '--score',
        help='what to compare (default: what the configs of the runs choose the best by, or the '
        f'first of {", ".join(SCORES)})',
    )
    parser.add_argument(
        '--lower-is-better',
        action='store_true',
        help='where neither the configs of the runs nor the name of the score, as rmse, say so',
    )
    parser.add_argument('--teacher', type=float, help="the teacher's score, for the gap closed")
    parser.add_argument('--out', type=Path, default=Path(), help='folder for picture and table')


def run(args: argparse.Namespace) -> None:
    runs = [read_run(folder) for folder in args.runs]
    score = choose_score(runs, args.score)
    lower = args.lower_is_better or falls(runs, score)
    header, rows = summarise(runs, score, args.teacher, lower)

    args.out.mkdir(parents=True, exist_ok=True)
    lines = [header, ['---'] * len(header), *rows]
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    (args.out / 'analysis.md').write_text(text + '\n')
    draw(args.out / 'analysis.png', runs, score, args.teacher, lower)

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f'Wrote {args.out / "analysis.png"} and {args.out / "analysis.md"}.')
