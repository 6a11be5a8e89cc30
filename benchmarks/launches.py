"""Count what a GPU would do for each loss, forward and backward; none is needed.

    python -m benchmarks.launches                 every loss
    python -m benchmarks.launches --only fgd cwd  those whose name begins so
    python -m benchmarks.launches --operators     and which operators
    python -m benchmarks.launches --page          write the table of docs/performance.md

A launch is an operator that is neither a view nor an allocation, on tensors of the meta device,
with which the losses go the ways of a GPU. A pass is one read or write of all maps of the student.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import losses as timed
from benchmarks.case import Case, Pair, forward_backward
from benchmarks.counting import Count, count, size_of
from benchmarks.reference_cwd import plain_cwd
from benchmarks.reference_fgd import make_boxes, plain_fgd
from benchmarks.reference_intrakd import make as make_intrakd
from benchmarks.reference_ld import make_head, plain_ld
from benchmarks.reference_logits import MEMBERS
from benchmarks.reference_mimic import PAIRS
from kd_dense.losses import (
    AttentionMapLoss,
    CWDLoss,
    DistillLoss,
    FGDLoss,
    FTLoss,
    LDLoss,
    MimicLoss,
    NFDLoss,
)
from kd_dense.losses.queries import matching

__all__ = ['CASES', 'Row', 'main', 'measure', 'table']

PIXELS = (800, 1344)
LEVELS = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
PAGE = Path(__file__).parents[1] / 'docs' / 'performance.md'
BEGIN, END = '<!-- launches: written by python -m benchmarks.launches --page -->', '<!-- end -->'


class Row(NamedTuple):
    """What was counted of a case."""

    what: str
    launches: int
    passes: float | None
    plain: int | None = None
    plain_passes: float | None = None


def pyramid(device: str, small: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Maps of student and teacher, five levels of 800x1344 with 256 channels, two images."""
    channels, levels = (4, [(4, 6), (2, 3)]) if small else (256, LEVELS)
    dtype = torch.float64 if small else torch.float32
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [
            torch.randn(2, channels, *size, generator=generator, dtype=dtype).to(device)
            for size in levels
        ]
        for _ in range(2)
    )
    return [x.requires_grad_() for x in student], teacher


def total(found: Any) -> Tensor:
    return torch.stack([*found.values()]).sum() if isinstance(found, dict) else found


def make_features(
    loss: DistillLoss, plain: Callable[[Tensor, Tensor], Tensor] | None, device: str, small: bool
) -> Pair:
    """A loss on a pyramid, as a term calls it."""
    student, teacher = pyramid(device, small)

    def ours() -> Tensor:
        return total(type(loss).over_maps([loss], student, teacher))

    def reference() -> Tensor:
        assert plain is not None
        maps = zip(student, teacher, strict=True)
        return torch.stack([plain(*both) for both in maps]).sum()

    return Pair(
        forward_backward(ours, student),
        forward_backward(reference, student) if plain else None,
    )


def make_fgd(device: str, small: bool) -> Pair:
    student, teacher = pyramid(device, small)
    losses = [FGDLoss(x.shape[1]).to(x) for x in student]
    parameters = [p for loss in losses for p in loss.parameters()]
    boxes = make_boxes(2, 3, PIXELS, device, student[0].dtype)
    needs = dict(boxes=boxes, batch_shape=PIXELS, image_shapes=[PIXELS] * 2)

    def ours() -> Tensor:
        return total(FGDLoss.over_maps(losses, student, teacher, **needs))

    def reference() -> Tensor:
        values = [
            loss.weights[name] * part
            for loss, s, t in zip(losses, student, teacher, strict=True)
            for name, part in plain_fgd(
                s, t, boxes, PIXELS, loss.student_context, loss.teacher_context
            ).items()
        ]
        return torch.stack(values).sum()

    inputs = [*student, *parameters]
    return Pair(forward_backward(ours, inputs), forward_backward(reference, inputs))


def make_ld(device: str, small: bool) -> Pair:
    (student, teacher), targets = make_head(device, small, boxes_each=100)
    for x in student:
        x.requires_grad_()
    loss = LDLoss(published_batch=None)
    return Pair(
        forward_backward(lambda: total(loss(student, teacher, head_targets=targets)), student),
        forward_backward(lambda: plain_ld(student, teacher, targets), student),
    )


FEATURES: dict[str, tuple[str, Any, Any]] = {
    'cwd': ('CWD, T=4', CWDLoss(temperature=4.0), lambda s, t: plain_cwd(s, t, 4.0)),
    'cwd-t1': ('CWD, T=1', CWDLoss(), lambda s, t: plain_cwd(s, t, 1.0)),
    'pkd': ('PKD', *PAIRS['pkd']),
    'vkd': ('VkD', *PAIRS['vkd']),
    'cosine': ('cosine', *PAIRS['cosine']),
    'hcl': ('HCL', *PAIRS['hcl']),
    'mimic': ('mimic', MimicLoss(), None),
    'ft': ('FT', FTLoss(), None),
    'nfd': ('NFD', NFDLoss(), None),
    'attention': ('attention maps', AttentionMapLoss(), None),
}

# The same at another size, or a part of another.
LIKE_OTHERS = {
    *('fgd', 'fgd-masks', 'intrakd-128', 'intrakd-512', 'cwd-features', 'skd-pair-nodes'),
    *('ld-regions', 'mimic-pkd', 'mimic-vkd', 'mimic-cosine', 'mimic-hcl', 'queries-900'),
    'edge-body-large',
    *(f'logits-{name}-128' for name in MEMBERS),
}
CASES = [
    *(
        Case(f'{name}-pyramid', f'{what}, five levels', partial(make_features, loss, plain))
        for name, (what, loss, plain) in FEATURES.items()
    ),
    Case('fgd-pyramid', 'FGD, five levels, 3 boxes an image', make_fgd),
    Case('ld-100', 'LD with regions, GFL, five levels, 100 boxes an image', make_ld),
    Case(
        'intrakd-8',
        'IntRA-KD, 19 classes, 8x128x64x128',
        partial(make_intrakd, (128, 512), images=8),
    ),
    *(case for case in timed.CASES if not case.bound and case.name not in LIKE_OTHERS),
]


def in_order(costs: Tensor) -> Tensor:
    """Pairs of queries without a look at their costs, which needs their values."""
    pairs = torch.arange(min(costs.shape[2:]), device=costs.device)
    return pairs.expand(2, *costs.shape[:2], -1)


def measure(case: Case, reference: bool = True) -> tuple[Row, Count]:
    """Count a case, and its plain reference.

    Args:
        case: The case.
        reference: Whether the reference is counted too; one that reads values runs on the CPU.
    """
    with mock.patch.object(matching, 'solve', in_order):
        pair = case.make('meta', False)
        ours = count(pair.ours)
        unit = sum(map(size_of, pair.ours()[1:])) or None
    row = Row(case.what, ours.launches, unit and ours.bytes / unit)
    if reference and pair.reference is not None:
        plain = count_plain(case, pair)
        row = row._replace(plain=plain.launches, plain_passes=unit and plain.bytes / unit)
    return row, ours


def count_plain(case: Case, pair: Pair) -> Count:
    assert pair.reference is not None
    try:
        return count(pair.reference)
    except (NotImplementedError, RuntimeError):  # reads values
        reference = case.make('cpu', False).reference
        assert reference is not None
        return count(reference, 'cpu')


def table(rows: Sequence[Row]) -> str:
    """The table of the page."""
    lines = ['| loss | launches | passes | plain formula: launches | passes |', '|-|-|-|-|-|']
    for row in rows:
        cells = row.what, row.launches, row.passes, row.plain, row.plain_passes
        lines.append('| ' + ' | '.join(map(_cell, cells)) + ' |')
    return '\n'.join(lines) + '\n'


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f'{value:.1f}'
    return f'{value:,}' if isinstance(value, int) else value or ''


def write_page(rows: Sequence[Row], path: Path) -> None:
    """Put the table where the page has it."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    path.write_text(f'{before}{BEGIN}\n{table(rows)}{END}{after}')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.launches',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='cases whose name begins so')
    parser.add_argument('--operators', action='store_true', help='which operators were called')
    parser.add_argument('--page', type=Path, nargs='?', const=PAGE, help='write the table there')
    args = parser.parse_args(argv)
    cases = [case for case in CASES if case.name.startswith(tuple(args.only or ['']))]
    if not cases:
        parser.error(f'nothing begins so; there are {", ".join(case.name for case in CASES)}')
    rows, console = [], Console(width=120)
    shown = Table('case', *('launches', 'passes', 'plain formula', 'passes'), title='On a GPU')
    for case in cases:
        row, counted = measure(case)
        rows.append(row)
        shown.add_row(f'{case.name}\n[dim]{row.what}[/]', *map(_cell, row[1:]))
        if args.operators:
            found = counted.operators.most_common()
            shown.add_row('\n'.join(f'[dim]{n} {name}[/]' for name, n in found))
    console.print(shown)
    if args.page:
        write_page(rows, args.page)
    return 0


if __name__ == '__main__':
    sys.exit(main())
