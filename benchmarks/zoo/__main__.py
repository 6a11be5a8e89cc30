"""Try every method on every family of models that mmdet and mmseg come with.

A family is a folder of configs, or the configs of one of our heads with box distributions. Its
model with the fewest parameters is the student (of detectors, one with a feature pyramid if there
is any), the largest model of the same kind is the teacher; both are untrained. A method works on a
family if, on a tiny input, all losses are finite, a gradient flows from the method's own terms
into the student, a step of the optimizer and then a prediction run, and the teacher is bit for bit
what it was. Training without a method ('plain') comes first, so that a model that does not train
anyway is told from one that cannot be distilled; the student is then the next larger one.

Each trial runs in a process of its own. Its result is a line of the output file; what the file
has already is not tried again. The exit status is 0 if every method works wherever the student
trains at all and the method applies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo.families import families
from benchmarks.zoo.page import page
from benchmarks.zoo.records import METHODS, PLAIN, load
from benchmarks.zoo.sweep import sweep
from kd_dense.taps import near_names


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.zoo',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'families', nargs='*', metavar='FAMILY', help="as 'mmdet/retinanet' (default: all)"
    )
    parser.add_argument(
        '--methods',
        nargs='*',
        choices=METHODS,
        default=METHODS,
        metavar='METHOD',
        help=f'of {", ".join(METHODS)} (default: all; none: plain training alone)',
    )
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('work_dirs/zoo.jsonl'),
        help='where results go, one JSON object a line (default: work_dirs/zoo.jsonl)',
    )
    parser.add_argument(
        '--apart', action='store_true', help='no two methods in one training, as most are'
    )
    parser.add_argument(
        '--steps', type=int, default=1, help='of training with a method (default: 1)'
    )
    parser.add_argument('--retry', action='store_true', help='try again what did not work')
    parser.add_argument(
        '--limit', type=float, default=300, help='seconds that a trial may take (default: 300)'
    )
    parser.add_argument(
        '--table',
        type=Path,
        metavar='FILE',
        help='try nothing; write the page with the results of these methods',
    )
    parser.add_argument(
        '--results', type=Path, nargs='+', help='output files that the page is made of'
    )
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f'--steps takes a number from 1 on, got {args.steps}')
    if args.table is not None and not args.results:
        parser.error('--table needs --results FILE.jsonl ...')
    for path in args.results or ():
        if not path.exists():
            parser.error(f'{path} does not exist')
    return args


def import_frameworks() -> None:
    """Import all models once: processes that are forked later have them."""
    import mmdet.utils
    import mmseg.utils

    for package in (mmdet, mmseg):
        package.utils.register_all_modules(init_default_scope=False)


def choose_families(names: Sequence[str]) -> dict[str, list[Path]]:
    """Those of these names, or all if there is none.

    Raises:
        SystemExit: If there is no such family.
    """
    known = families()
    for name in names:
        if name not in known:
            raise SystemExit(f'there is no family {name!r}: {near_names(name, known)}')
    return {name: known[name] for name in names or known}


def main() -> int:
    args = parse_args()
    if args.table is not None:
        records = [record for path in args.results for record in load(path)]
        args.table.write_text(page(records, args.methods))
        return 0
    import_frameworks()
    chosen = choose_families(args.families)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    records = []
    trials = sweep(
        chosen, args.methods, args.output, args.limit, args.retry, args.steps, args.apart
    )
    for record in trials:
        records.append(record)
        place = [*chosen].index(record['family']) + 1
        what = 'ok' if record['ok'] else 'no: ' + record['reason']
        print(f'[{place}/{len(chosen)}] {record["family"]} {record["method"]}: {what}', flush=True)
    plain = [record['ok'] for record in records if record['method'] == PLAIN]
    distilled = [record['ok'] for record in records if record['method'] != PLAIN]
    print(
        f'{sum(plain)} of {len(plain)} families train; '
        f'{sum(distilled)} of {len(distilled)} methods work on them'
    )
    return 0 if all(distilled) else 1


if __name__ == '__main__':
    sys.exit(main())
