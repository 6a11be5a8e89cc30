"""Time whole training steps of recipes against the least that they can cost.

    kd_dense benchmark kd_dense::cwd/cwd_retinanet-r50_from_retinanet-r101_1x_coco.py
    kd_dense benchmark RECIPE --size 512 1024 --against RECIPE model.teacher.precision=bf16

The floor of a distilled step is the student's plain training step and, beside it, the teacher's
layers up to its last tap, forward only, under the autocast of the student if there is one. It is
measured on models of its own, without distillation, in the same rounds as the distilled step.

The floor of its memory is what the plain step holds at its peak, the teacher's tapped maps, and
its largest layer: the largest sum of input and output of one module without children that runs
on the way to the last tap. Weights and the state of optimizers are not part of either.

Pictures, boxes and label maps are random, and so are all weights unless --pretrained is given;
learning rates are 0, so that all steps compute the same. Decoding and preprocessing of the
pictures are left out. Terms run at their full weight, whatever their schedules say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense import __version__
from kd_dense.cli.config import add_config, add_options
from kd_dense.mm.configs import RequestError, read_config
from kd_dense.mm.cost.recipe import DETECTION_SIZE
from kd_dense.mm.cost.side_by_side import GOAL, SideBySide

ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, 'of a recipe')
    parser.add_argument(
        '--against',
        nargs='+',
        action='append',
        default=[],
        metavar=('CONFIG', 'KEY=VALUE'),
        help='other recipes for the same student, timed in the same rounds; settings after a '
        'recipe override it alone, as in --against RECIPE model.teacher.precision=bf16',
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help=f'of the pictures (default: {DETECTION_SIZE[0]} {DETECTION_SIZE[1]} for detectors, '
        'the crops of the config for segmenters)',
    )
    parser.add_argument('--batch-size', type=int, default=2, help='pictures (default: 2)')
    parser.add_argument('--rounds', type=int, default=5, help='that are timed (default: 5)')
    parser.add_argument('--threads', type=int, help='of the CPU (default: as torch chooses)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    parser.add_argument(
        '--pretrained', action='store_true', help='fetch and load all published weights'
    )
    add_options(parser, launcher=False)


def run(args: argparse.Namespace) -> None:
    if min(args.batch_size, args.rounds, args.threads or 1, *(args.size or [1])) < 1:
        raise RequestError(
            '--batch-size, --rounds, --threads and both numbers of --size must be >= 1'
        )
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise RequestError('--device cuda: torch finds no GPU')
    if args.threads:
        torch.set_num_threads(args.threads)
    MMLogger.get_instance('benchmark', log_level='ERROR')
    benchmark = side_by_side(args)
    with shown_progress(args.rounds) as progress:
        figures = benchmark.measure(args.rounds, progress)
    results = {**surroundings(args, benchmark), **figures}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1))
    report(results)


def side_by_side(args: argparse.Namespace) -> SideBySide:
    """Build all that is asked for."""
    return SideBySide(
        named_configs(args), args.size, args.batch_size, args.device, args.pretrained
    )


def named_configs(args: argparse.Namespace) -> dict[str, Config]:
    """Read all recipes; their names are those of the files and what is set for one alone."""
    chosen: list[tuple[str, list[str]]] = [(args.config, [])]
    for words in args.against:
        if '=' in words[0]:
            raise RequestError(f'--against expects a recipe before its settings, got {words[0]}')
    for word in chain(*args.against):
        if '=' in word:
            chosen[-1][1].append(word)
        else:
            chosen.append((word, []))
    found: dict[str, Config] = {}
    for path, settings in chosen:
        name = ' '.join([Path(path).stem, *settings])
        if name in found:
            raise RequestError(f'{name} is named twice: change a setting, or leave one out')
        found[name] = read(path, [*(args.cfg_options or {}).items(), *map(_parsed, settings)])
    return found


def _parsed(setting: str) -> tuple[str, Any]:
    key, _, value = setting.partition('=')
    return key, DictAction._parse_iterable(value)


def read(path: str, settings: Iterable[tuple[str, Any]]) -> Config:
    """Read a config, and override its settings; a teacher's as well, where it is a mere name."""
    config = read_config(path)
    for key, value in settings:
        model: Any = config.get('model') or {}
        if isinstance(model.get('teacher'), str):
            model.teacher = dict(config=model.teacher)
        config.merge_from_dict({key: value})
    return config


@contextmanager
def shown_progress(rounds: int) -> Iterator[Callable[[int, int, str], None]]:
    """Show how far the work is, on the terminal or line by line where there is none."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn('{task.description}'),
        BarColumn(24),
        TextColumn('{task.completed:.0f}/{task.total:.0f}'),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,  # drawing would take time from what is timed
    )

    def show(done: int, total: int, what: str) -> None:
        bars.update(bar, completed=done, total=total, description=what)
        bars.refresh()
        if not console.is_terminal:
            console.print(f'{what}: {done} of {total}')

    with bars:
        bar = bars.add_task('rounds', total=rounds + 1)
        bars.refresh()
        yield show


def surroundings(args: argparse.Namespace, benchmark: SideBySide) -> dict[str, Any]:
    """What the figures depend on."""
    inputs = benchmark.batch.inputs
    return {
        'size': list(inputs.shape[-2:]),
        'batch_size': len(inputs),
        'rounds': args.rounds,
        'pretrained': args.pretrained,
        'device': torch.cuda.get_device_name() if args.device == 'cuda' else 'cpu',
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'version': __version__,
        'commit': commit(ROOT),
    }


def commit(root: Path) -> str | None:
    """Which commit a checkout is at, and whether it was changed; None where there is no checkout.

    An installed package may lie below the checkout of something else.
    """
    if not (root / '.git').exists():
        return None
    git = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return git.stdout.strip() or None


def report(results: Mapping[str, Any]) -> None:
    """Print all figures as a table, and each recipe against its floor."""
    console = Console(width=120)
    console.print(table(results), markup=False)
    for number, (name, found) in enumerate(results['recipes'].items(), 1):
        lines = [f'[{number}] {name}', *sentences(found)]
        if number > 1:
            lines.append(f'step {_written(found["step_to_first"])} x that of [1]')
        console.print('\n    '.join(lines), markup=False, highlight=False)


def table(results: Mapping[str, Any]) -> Table:
    """What is shared first, then a section for each recipe."""
    calls, recipes = results['calls'], results['recipes']
    found = Table(
        title='{size[0]}x{size[1]}, batch of {batch_size}, {rounds} rounds, {device}, '
        '{threads} threads'.format_map(results)
    )
    found.add_column('')
    for title in ('seconds', '(quartiles)', 'peak MB'):
        found.add_column(title, justify='right')
    sections = [
        {one['step']: f'[{number}] distilled step'}
        | {call: f'[{number}] {term}, alone' for term, call in one['terms'].items()}
        for number, one in enumerate(recipes.values(), 1)
    ]
    own = set(chain(*sections))
    for section in [{name: name for name in calls if name not in own}, *sections]:
        for name, title in section.items():
            call = calls[name]
            found.add_row(
                title,
                f'{call["median"]:.3f}',
                f'{call["low"]:.3f}-{call["high"]:.3f}',
                f'{call["peak_bytes"] / 1e6:.0f}',
            )
        found.add_section()
    return found


def sentences(found: Mapping[str, Any]) -> list[str]:
    """A recipe against its floor."""
    return [
        f'time {_written(found["step_to_floor"])} x floor, goal {GOAL} '
        f'{_verdict(found["goals"]["time"])}; with the whole teacher in place of its first '
        f'layers the floor would be {_written(found["whole_teacher_to_floor"])}',
        f'memory {found["peak_to_floor"]:.3f} x floor of {found["floor_bytes"] / 1e6:.0f} MB, '
        f'goal {GOAL} {_verdict(found["goals"]["memory"])}',
        f'losses {100 * found["losses_to_step"]["median"]:.1f} % of the step',
    ]


def _written(found: Mapping[str, float]) -> str:
    return '{median:.3f} ({low:.3f}-{high:.3f})'.format_map(found)


def _verdict(good: bool) -> str:
    return 'met' if good else 'MISSED'
