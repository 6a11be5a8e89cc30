"""List the places of a model that a term can tap: a tree with channels, strides and shapes.

    kd_dense taps mmdet::retinanet/retinanet_r50_fpn_2x_coco.py
    kd_dense taps STUDENT_CONFIG --match TEACHER_CONFIG

With --match, or for a recipe, whose teacher is known, also which of them can be distilled: as they
are, with an adapter, or not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from rich.console import Console
from rich.table import Table

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.cli.config import add_config
from kd_dense.mm.check.survey import Pair, Place, compare, survey
from kd_dense.mm.configs import build_model, distils, read_config
from kd_dense.mm.teachers.openmmlab import config_of_teacher
from kd_dense.mm.teachers.several import called, each_teacher, plain, runs_by_itself, teachers_of

COLORS = {'fits': 'green', 'adapter': 'yellow', 'adapter, resized': 'yellow'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, 'of a model or a recipe')
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


def run(args: argparse.Namespace) -> None:
    config = read_config(args.config)
    teachers: dict[str, Any] = {}
    if args.match is not None:
        teachers['teacher'] = read_config(args.match)
    elif distils(config):
        for name, one in teachers_of(each_teacher(config.model.teacher, plain)).items():
            if runs_by_itself(one):
                teachers[called(name)] = config_of_teacher(one)
    if distils(config):
        config.model = config.model.student
    size = (args.size[0], args.size[1])
    if not teachers:
        pairs = [Pair(place.tap, place, None, '') for place in survey(build_model(config), size)]
        show(args, {'': pairs}, size)
        return
    show(
        args,
        {
            whose: compare(build_model(deepcopy(config)), build_model(teacher), size)
            for whose, teacher in teachers.items()
        },
        size,
    )


def show(
    args: argparse.Namespace, found: Mapping[str, Sequence[Pair]], size: tuple[int, int]
) -> None:
    """Print the taps of the student, beside those of each teacher."""
    chosen = {
        whose: [pair for pair in pairs if args.all or pair.tap.count('.') < args.depth]
        for whose, pairs in found.items()
    }
    if args.json:
        listed = [
            {**record(pair, alone=not whose), **({'of': whose} if len(found) > 1 else {})}
            for whose, pairs in chosen.items()
            for pair in pairs
        ]
        print(json.dumps(listed))
        return
    console = Console()
    console.print(f'On images of {size[0]}x{size[1]} pixels:')
    for whose, pairs in chosen.items():
        columns = ['channels', 'stride', 'height x width']
        if whose:
            columns = ['student', whose, 'can be distilled']
        table = Table('tap', 'layer', *columns)
        table.columns[0].no_wrap = True
        for pair in pairs:
            place = pair.student or pair.teacher
            assert place is not None
            row = described(pair.student, size)
            if whose:
                color = COLORS.get(pair.verdict, 'dim')
                theirs = described(pair.teacher, size)
                row = [*map(in_short, (row, theirs)), f'[{color}]{pair.verdict}[/]']
            table.add_row(branch(pair.tap), place.kind, *row)
        console.print(table)
    hidden = max(len(found[whose]) - len(chosen[whose]) for whose in found)
    if hidden:
        console.print(f'{hidden} places lie deeper: --depth {args.depth + 1}, or --all.')
    console.print("One or some of the maps of a tap are 'neck[0]', 'neck[:4]'.")
