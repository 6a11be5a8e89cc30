"""List the places of a model that a term can tap: a tree with channels, strides and shapes.

With --match, or for a recipe, whose teacher is known, also which of them can be distilled: as they
are, with an adapter, or not.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.table import Table

# This comes before any config is read.
from kd_dense.mm.survey import Pair, Place, compare, survey
from kd_dense.mm.teacher import read_teacher_config
from train import read_config

COLORS = {'fits': 'green', 'adapter': 'yellow', 'adapter, resized': 'yellow'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="config of a model or a recipe, or 'mmdet::FOLDER/FILE.py'")
    parser.add_argument('--match', metavar='TEACHER', help='config of a teacher to compare with')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=(256, 512),
        metavar=('HEIGHT', 'WIDTH'),
        help='of the images, in pixels (default: 256 512)',
    )
    parser.add_argument('--depth', type=int, default=2, help='parts of a name (default: 2)')
    parser.add_argument('--all', action='store_true', help='all places, however deep')
    parser.add_argument('--json', action='store_true', help='for machines')
    parser.set_defaults(cfg_options=None, launcher='none', local_rank=0, work_dir='work_dirs')
    return parser.parse_args()


def build(config: Config) -> Any:
    """Build a model as its config says, without weights."""
    model = ConfigDict(config.model)
    if 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return MODELS.build(model)


def branch(tap: str) -> str:
    """A tap as the branch of a tree: indented, with the names of its parents dim."""
    parents, dot, own = tap.rpartition('.')
    return f'{"  " * tap.count(".")}[dim]{parents}{dot}[/]{own}'


def described(place: Place | None, size: tuple[int, int]) -> list[str]:
    """Channels, strides, and heights and widths of the maps that a place yields."""
    if place is None:
        return ['', '', '']
    widths = dict.fromkeys(str(shape[1]) for shape in place.found.shapes)
    strides = [size[0] / shape[2] for shape in place.found.shapes]
    columns = (
        [*widths],
        [f'{stride:.0f}' if stride >= 1 else f'{stride:.2g}' for stride in strides],
        [f'{shape[2]}x{shape[3]}' for shape in place.found.shapes],
    )
    return [' '.join(column if len(column) <= 6 else [*column[:5], '...']) for column in columns]


def in_short(columns: list[str]) -> str:
    """Channels and strides in one cell."""
    channels, strides, _ = columns
    return f'{channels} ch, stride {strides}' if channels else ''


def record(pair: Pair, alone: bool) -> dict[str, Any]:
    """What is known of a tap, for machines."""
    ours, theirs = (
        place and dict(layer=place.kind, calls=place.found.calls, shapes=place.found.shapes)
        for place in (pair.student, pair.teacher)
    )
    if alone:
        return dict(tap=pair.tap, **(ours or {}))
    return dict(tap=pair.tap, student=ours, teacher=theirs, verdict=pair.verdict)


def main() -> None:
    args = parse_args()
    config = read_config(args)
    try:
        teacher = None if args.match is None else read_teacher_config(args.match)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    if config.model.get('type') == 'kd_dense.Distilled':
        if teacher is None:
            found = config.model.teacher
            teacher = read_teacher_config(found if isinstance(found, str) else found['config'])
        config.model = config.model.student
    size = (args.size[0], args.size[1])

    if teacher is None:
        pairs = [Pair(place.tap, place, None, '') for place in survey(build(config), size)]
    else:
        pairs = compare(build(config), build(teacher), size)
    shown = [pair for pair in pairs if args.all or pair.tap.count('.') < args.depth]

    if args.json:
        print(json.dumps([record(pair, alone=teacher is None) for pair in shown]))
        return
    columns = ['channels', 'stride', 'height x width']
    if teacher is not None:
        columns = ['student', 'teacher', 'can be distilled']
    table = Table('tap', 'layer', *columns)
    table.columns[0].no_wrap = True
    for pair in shown:
        place = pair.student or pair.teacher
        assert place is not None
        row = described(pair.student, size)
        if teacher is not None:
            color = COLORS.get(pair.verdict, 'dim')
            theirs = described(pair.teacher, size)
            row = [*map(in_short, (row, theirs)), f'[{color}]{pair.verdict}[/]']
        table.add_row(branch(pair.tap), place.kind, *row)
    console = Console()
    console.print(f'On images of {size[0]}x{size[1]} pixels:')
    console.print(table)
    hidden = len(pairs) - len(shown)
    if hidden:
        console.print(f'{hidden} places lie deeper: --depth {args.depth + 1}, or --all.')
    console.print("One or some of the maps of a tap are 'neck[0]', 'neck[:4]'.")


if __name__ == '__main__':
    main()
