"""Distil small students on Scenes and compare them with themselves, trained alone.

For segmentation and detection: a teacher, the student alone, the student with each method on
the same schedule, and the student alone on a schedule that costs the same CPU time. Every run
is scored on the test split by the stock metrics (mIoU; COCO AP). The table, the curves and the
predictions side by side go to the work directory. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from examples.quickstart.jobs import ROOT, TASKS, TITLES, methods_of


def main() -> None:
    """Run the command line; with ``--job``, one run of it."""
    args = parse()
    os.chdir(ROOT)
    if args.job:
        from examples.quickstart.training import train_and_test

        train_and_test(json.loads(args.job))
        return

    from examples.quickstart.experiment import compare
    from examples.quickstart.make_scenes import make_scenes

    os.environ['SCENES'] = str(args.data)  # the configs read it
    if not (args.data / 'scenes.json').is_file():
        make_scenes(args.data, progress=True)
    report(args.work_dir, compare(args))


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog='python -m examples.quickstart', description=__doc__)
    parser.add_argument('--seeds', type=int, default=1, help='how many seeds (default: 1)')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument(
        '--methods', nargs='+', choices=['all', *TITLES], default=['auto'], help='(default: auto)'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'))
    parser.add_argument('--data', type=Path, default=Path('data/scenes'), help='where Scenes lie')
    parser.add_argument(
        '--iterations', type=int, help='length of every training (default: as configured)'
    )
    parser.add_argument(
        '--processes', type=int, default=2, help='runs side by side, one core each (default: 2)'
    )
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='train teachers and pretrained backbone too, rather than take the committed ones',
    )
    parser.add_argument('--job', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.seeds, args.processes, args.iterations or 1) < 1:
        parser.error('--seeds, --processes and --iterations must be at least 1')
    if 'all' in args.methods:
        args.methods = list(TITLES)
    for task in args.tasks:
        if not methods_of(task, args.methods):
            parser.error(f'none of {", ".join(args.methods)} does {TASKS[task]}: see --tasks')
    return args


def report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the table and the pictures, and print the table."""
    print('Measuring the speed of the models and drawing ...', flush=True)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the frameworks have much to say, as loading data does
        from mmengine.logging import MMLogger

        from examples.quickstart.report import draw, measure_speed, write_table

        MMLogger.get_instance('quickstart', log_level='ERROR')
        speed = measure_speed(results)
        table = write_table(folder, results, speed)
        draw(folder, results)
    print(table)
    print(f'\nTable and pictures: {folder}/results.md, {folder}/curves.png, '
          f'{folder}/predictions_*.png')  # fmt: skip


if __name__ == '__main__':
    main()
