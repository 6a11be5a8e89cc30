"""Does distillation make a better student? Train many, and say.

For each set of pictures: a teacher; the student alone, by inheritance, and with each method;
and, as a control, the student alone for the CPU time that a method takes. Every run is scored on
pictures held out of the training set (val) and on the test pictures (test), and is one line of the
results file. What has its line is not run again: a study that was stopped goes on.

Every run is one process on one core.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.study.cells import ROOT, SCHEDULES, SEEDS, SETS, Cell, teacher_of
from benchmarks.study.methods import METHODS, PICTURES, TRIED
from benchmarks.study.results import Results


def main() -> None:
    """Run the command line; with ``--job``, one run of it."""
    args = parse()
    os.chdir(ROOT)
    if args.job:
        from benchmarks.study.run import run

        run(Cell(**json.loads(args.job)))
        return
    results = Results(args.output)
    if args.page:
        from benchmarks.study.brought import with_column
        from benchmarks.study.page import page

        args.page.write_text(page(results.lines))
        print(f'{args.page}: {len(results.lines)} runs')
        methods = ROOT / 'docs/methods/README.md'
        methods.write_text(with_column(methods.read_text(), results.lines))
        return
    os.environ.setdefault('SCENES', 'data/scenes')
    for name in args.sets:
        if not SETS[name].needs.is_dir():
            raise SystemExit(
                f'{name} needs the folder {SETS[name].needs}, which does not exist: see '
                'examples/real/README.md, and examples.quickstart.make_scenes for Scenes'
            )
    if args.check_again:
        from benchmarks.study.run import check_again

        check_again(results, args.sets, args.methods)
        return
    from benchmarks.study.queue import StudyQueue

    queue = StudyQueue(args.processes, results, args.minutes)
    with queue.bars:
        wholes = [SETS[name].whole for name in args.sets if any('full' in m for m in args.methods)]
        queue.do([teacher_of(name) for name in filter(None, [*args.sets, *wholes])])
        queue.do([*same_schedule(args)])
        if 'cpu_time' in args.controls:
            queue.do([*same_cpu_time(args, results)])
    print(f'{args.output}: {len(results.lines)} runs; --page FILE writes the page')


def same_schedule(args: argparse.Namespace) -> Iterator[Cell]:
    """The students, seed by seed, so that what is stopped early is complete for some."""
    for seed in range(args.seeds):
        for name in args.sets:
            for schedule in args.schedules:
                count = SETS[name].iterations[schedule]
                for method in args.methods:
                    for weights in kinds(method, args.weights):
                        yield Cell(name, method, weights, schedule, seed, count)


def kinds(method: str, weights: Sequence[str]) -> Sequence[str]:
    """The kinds of weights that a method is tried with."""
    own = method in TRIED or method.partition('+')[0] in ('alone', 'inherit', 'auto')
    return ['-'] if own else weights


def same_cpu_time(args: argparse.Namespace, results: Results) -> Iterator[Cell]:
    """The students alone, for as long as each method took."""
    for name in args.sets:
        for schedule in args.schedules:
            count = SETS[name].iterations[schedule]
            seconds = results.seconds(name, schedule, 'alone', '-')
            for method in args.methods:
                for weights in kinds(method, args.weights):
                    theirs = results.seconds(name, schedule, method, weights)
                    if method in ('alone', 'inherit') or not (seconds and theirs):
                        continue
                    longer = round(count * mean(theirs) / mean(seconds) / 10) * 10
                    equals = method if weights in ('published', '-') else f'{method} {weights}'
                    for seed in range(args.seeds):
                        yield Cell(name, 'alone', '-', schedule, seed, longer, 'cpu_time', equals)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.study',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = 'docs/results/study.jsonl'
    add = parser.add_argument
    add('--sets', nargs='+', choices=SETS, default=list(SETS), help='(default: all)')
    names = [name for name in METHODS if not name.endswith(PICTURES)]
    add(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=['alone', 'inherit', 'cwd'],
        metavar='METHOD',
        help=f'of {", ".join(names)}; where few pictures have labels, also with one of '
        f'{", ".join(PICTURES)} behind',
    )
    add('--weights', nargs='+', choices=['published', 'shares'], default=['published'])
    add('--schedules', nargs='+', choices=SCHEDULES, default=['short'])
    add('--controls', nargs='*', choices=['cpu_time'], default=[], help='(default: none)')
    add('--seeds', type=int, default=len(SEEDS), help='how many (default: 3)')
    add('--processes', type=int, default=2, help='runs side by side (default: 2)')
    add('--minutes', type=float, help='start no run after so many minutes')
    add('--output', type=Path, default=Path(default), help=f'(default: {default})')
    add(
        '--page',
        type=Path,
        metavar='FILE',
        help='run nothing; write the page of all results, and the column in docs/methods',
    )
    add(
        '--check-again',
        action='store_true',
        help='train nothing; ask `kd_dense check` about the runs of the results file anew',
    )
    add('--job', help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
