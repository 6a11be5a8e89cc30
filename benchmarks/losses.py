"""Time and memory of each loss, forward and backward, against a plain reference.

    python -m benchmarks.losses                      every case
    python -m benchmarks.losses --only fgd cwd       those whose name begins so
    python -m benchmarks.losses --scaling            how cost grows, with a picture

Ours and the reference run in turns in one process, on the same inputs. Before that both have to
give the same value and gradient. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import (
    reference_cwd,
    reference_erd,
    reference_fgd,
    reference_generation,
    reference_intrakd,
    reference_ld,
    reference_logits,
    reference_masked,
    reference_memory,
    reference_mimic,
    reference_predictions,
    reference_prototypes,
    reference_queries,
    reference_relations,
    reference_review,
    reference_rois,
    reference_skd,
)
from benchmarks.case import Case, check_same
from benchmarks.scaling import CURVES, draw_growth, measure_growth, report_growth
from kd_dense.measure import peak_memory, ratio, spread, time_interleaved

__all__ = ['CASES', 'main', 'measure']

CASES = [
    *reference_fgd.cases(),
    *reference_cwd.cases(),
    *reference_skd.cases(),
    *reference_intrakd.cases(),
    *reference_ld.cases(),
    *reference_logits.cases(),
    *reference_mimic.cases(),
    *reference_masked.cases(),
    *reference_memory.cases(),
    *reference_generation.cases(),
    *reference_relations.cases(),
    *reference_prototypes.cases(),
    *reference_predictions.cases(),
    *reference_review.cases(),
    *reference_rois.cases(),
    *reference_erd.cases(),
    *reference_queries.cases(),
]


def measure(case: Case, rounds: int, device: str, small: bool = False) -> dict[str, Any]:
    """Check a case, then measure it: seconds, bytes, ratios, and whether its goals are met.

    Raises:
        AssertionError: If ours and the reference do not give the same.
    """
    pair = case.make(device, small)
    if not case.bound:
        check_same(case.name, pair)
    calls = {'ours': pair.ours}
    if pair.reference is not None:
        calls['reference'] = pair.reference
    gc.collect()
    gc.disable()  # a collection would be charged to the call in which it happens
    try:
        seconds = time_interleaved(calls, rounds, device=device)
    finally:
        gc.enable()
    memory = {name: peak_memory(call, device) for name, call in calls.items()}
    found: dict[str, Any] = dict(what=case.what, goals={})
    for name, times in seconds.items():
        found[name] = dict(**_figures(times), all=times, peak_bytes=memory[name])
    if pair.reference is not None:
        speed = ratio(seconds['reference'], seconds['ours'])
        share = memory['ours'] / memory['reference']
        found.update(speed=speed._asdict(), memory=share)
        if case.goal_speed is not None:
            found['goals']['speed'] = speed.median >= case.goal_speed
        if case.goal_memory is not None:
            found['goals']['memory'] = share <= case.goal_memory
    return found


def _figures(times: Sequence[float]) -> dict[str, float]:
    return spread(times)._asdict()


def report(cases: Sequence[Case], results: Mapping[str, Any], surroundings: str) -> None:
    """Print all figures as a table."""
    table = Table(title=f'Losses, forward and backward: {surroundings}')
    table.add_column('case', overflow='fold')
    for title in ('ours, ms', 'reference, ms', 'times faster', 'ours, MB', 'reference, MB'):
        table.add_column(title, justify='right')
    table.add_column('share', justify='right')
    for case in cases:
        found = results[case.name]
        row = [f'{case.name}\n[dim]{case.what}[/]', _milliseconds(found['ours'])]
        if 'reference' not in found:
            table.add_row(*row, '', '', _megabytes(found['ours']))
            continue
        speed = '{median:.2f}\n[dim]{low:.2f}-{high:.2f}[/]'.format_map(found['speed'])
        table.add_row(
            *row,
            _milliseconds(found['reference']),
            speed + _verdict('>=', case.goal_speed, found['goals'].get('speed')),
            _megabytes(found['ours']),
            _megabytes(found['reference']),
            f'{found["memory"]:.2f}\n'
            + _verdict('<=', case.goal_memory, found['goals'].get('memory')),
        )
    Console(width=120).print(table)


def _milliseconds(found: Mapping[str, float]) -> str:
    median, low, high = (1000 * found[key] for key in ('median', 'low', 'high'))
    return f'{median:.2f}\n[dim]{low:.2f}-{high:.2f}[/]'


def _megabytes(found: Mapping[str, float]) -> str:
    return f'{found["peak_bytes"] / 1e6:.1f}'


def _verdict(sign: str, goal: float | None, met: bool | None) -> str:
    if goal is None:
        return ''
    return f'\n{sign} {goal:.2f} ' + ('[green]met[/]' if met else '[red]missed[/]')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.losses',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='cases whose name begins so')
    parser.add_argument('--rounds', type=int, default=15, help='how often each is timed')
    parser.add_argument('--threads', type=int, default=1, help='threads of PyTorch on a CPU')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--small', action='store_true', help='tiny inputs, to try the command')
    parser.add_argument('--json', type=Path, metavar='FILE', help='where the figures go')
    parser.add_argument('--scaling', action='store_true', help='how cost grows, instead')
    parser.add_argument('--picture', type=Path, metavar='FILE', help='of how cost grows')
    args = parser.parse_args(argv)
    if args.picture and not args.scaling:
        parser.error('--picture shows how cost grows: add --scaling')
    names = tuple(args.only or [''])
    args.cases = [case for case in CASES if case.name.startswith(names)]
    if args.scaling:
        args.cases = [curve for curve in CURVES if curve.name.startswith(names)]
    if not args.cases:
        known = sorted({x.name for x in (CURVES if args.scaling else CASES)})
        parser.error(f'nothing begins with {" or ".join(names)}; there are {", ".join(known)}')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    on_gpu = args.device == 'cuda'
    device = (
        torch.cuda.get_device_name()
        if on_gpu
        else f'CPU, {args.threads} thread' + 's' * (args.threads != 1)
    )
    surroundings = f'{device}, torch {torch.__version__}, {args.rounds} rounds'
    results = {}
    with Progress(
        TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn(), transient=True
    ) as progress:
        task = progress.add_task('', total=len(args.cases))
        for case in args.cases:
            progress.update(task, description=case.name)
            run = measure_growth if args.scaling else measure
            results[case.name] = run(case, args.rounds, args.device, args.small)
            progress.advance(task)
    found = dict(surroundings=surroundings, results=results)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1))
    if args.scaling:
        report_growth(args.cases, results, surroundings)
        if args.picture:
            draw_growth(args.cases, results, surroundings, args.picture)
        return 0
    report(args.cases, results, surroundings)
    return int(not all(met for found in results.values() for met in found['goals'].values()))


if __name__ == '__main__':
    sys.exit(main())
