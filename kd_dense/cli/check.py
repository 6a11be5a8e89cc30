"""Find out what a distilled training would do, before anything trains.

    kd_dense check kd_dense::cwd/cwd_retinanet-r50_from_retinanet-r101_1x_coco.py
    kd_dense check STUDENT_CONFIG --teacher TEACHER_CONFIG --distill fgd

Says what is tapped, adapted and inherited, whether the teacher's checkpoint fits, what each term
weighs against the task on real batches, how teacher and student score on some validation
pictures, what a step costs, and which parameters get no gradient. Nothing is written. The exit
status is 1 if something would stop the training or make its result worthless.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

from mmengine.device import get_device
from mmengine.logging import MMLogger
from rich.console import Console
from rich.text import Text

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.cli.config import add_config, add_distill_options, add_options, chosen_config
from kd_dense.mm.check.check import check
from kd_dense.mm.check.finding import ERROR, OK, WARNING, Finding
from kd_dense.mm.configs import RequestError

STYLES = {OK: 'green', WARNING: 'yellow', ERROR: 'bold red'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, 'of a recipe, or with --teacher of a student')
    add_distill_options(parser)
    parser.add_argument(
        '--student-checkpoint',
        metavar='FILE',
        help='weights of the student trained alone, to score beside the teacher',
    )
    parser.add_argument(
        '--batches', type=int, default=4, help='that each term is weighed on (default: 4)'
    )
    parser.add_argument(
        '--images', type=int, default=50, help='that both models are scored on (default: 50)'
    )
    parser.add_argument('--device', default=get_device(), help='(default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='for machines')
    add_options(parser, launcher=False)


def run(args: argparse.Namespace) -> int:
    if min(args.batches, args.images) < 1:
        raise RequestError('--batches and --images must be at least 1')
    MMLogger.get_instance('check', log_level='CRITICAL')  # what matters is found below
    config = chosen_config(args)
    with shown_progress(quiet=args.json) as progress:
        findings = check(
            config, args.batches, args.images, args.student_checkpoint, args.device, progress
        )
    failed = any(found.status == ERROR for found in findings)
    if args.json:
        fields = [for_machines(found._asdict()) for found in findings]
        print(json.dumps({'config': args.config, 'ok': not failed, 'findings': fields}))
    else:
        report(findings)
        proposed = commands(args, (config.get('model') or {}).get('preset'), findings)
        if proposed:
            print('\n  '.join(['to train with the proposed weights:', *proposed]))
    return int(failed)


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Say on the terminal, or line by line where there is none, what is going on."""
    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield lambda text: console.print(f'checking {text}', markup=False)
        return
    with console.status('checking') as status:
        yield lambda text: status.update(f'checking {text}')


def for_machines(value: Any) -> Any:
    """The same without what JSON has no word for: nan and infinity."""
    if isinstance(value, Mapping):
        return {key: for_machines(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_machines(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report(findings: Sequence[Finding]) -> None:
    """Print one line for each finding, and below it what to do."""
    console = Console()
    for found in findings:
        head, _, rest = found.message.partition('\n')
        line = Text(f'{found.status:<8}', STYLES[found.status])
        line.append(f'{found.check}: ', 'bold').append(head, 'default')
        console.print(line, soft_wrap=True)
        if rest:
            console.print(Text(indent(rest, ' ' * 8)), soft_wrap=True)
        if found.remedy:
            console.print(Text(f'{"":8}-> {found.remedy}'), soft_wrap=True)
    counts = {status: sum(found.status == status for found in findings) for status in STYLES}
    console.print(', '.join(f'{count} {status}' for status, count in counts.items()))


def commands(args: argparse.Namespace, preset: Any, findings: Sequence[Finding]) -> list[str]:
    """How to train with the weights that warnings propose, if any; a preset is spelt out first."""
    options = [
        found.figures['option']
        for found in findings
        if found.status == WARNING and 'option' in found.figures
    ]
    if not options:
        return []
    recipe, found = args.config, []
    if preset:
        names = [preset] if isinstance(preset, str) else preset
        recipe = f'work_dirs/{"_".join([Path(args.config).stem, *names])}.py'
        command = [args.config, '--dump-config', recipe]
        if args.teacher:
            command += ['--teacher', args.teacher, '--distill', *names]
        if args.teacher_checkpoint:
            command += ['--teacher-checkpoint', args.teacher_checkpoint]
        if args.weights != 'auto':
            command += ['--weights', args.weights]
        found = [command]
    found.append([recipe, '--cfg-options', *options])
    return [shlex.join(['kd_dense', 'train', *command]) for command in found]
