"""What distillation costs on a GPU, and whether all works there, within 8 minutes.

    bash benchmarks/gpu.sh                       all parts, one after the other
    bash benchmarks/gpu.sh --only losses gfl     those whose name begins so
    bash benchmarks/gpu.sh --page                and write the tables of docs/performance.md
    bash benchmarks/gpu.sh --device cpu --tiny   the same ways without a GPU, to try them

The parts are `python -m benchmarks.losses`, `kd_dense benchmark` on recipes, and the tests of
tests/gpu, which get what time is left. What takes longer than its share is ended, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

__all__ = ['Part', 'main', 'parts', 'run', 'tables']

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'performance.md'
BEGIN, END = '<!-- gpu: written by bash benchmarks/gpu.sh --page -->', '<!-- end -->'
SECONDS = 465  # all together
PATIENCE = 4  # times as long on a CPU, where nothing is measured that counts
CORE = ('cwd', 'fgd', 'skd-pixel', 'skd-pair', 'intrakd', 'ld')

RETINANET = 'configs/cwd/cwd_retinanet-r50_from_retinanet-r101_1x_coco.py'
FGD = 'configs/fgd/fgd_retinanet-r50_from_retinanet-x101-64x4d_2x_coco.py'
GFL = 'configs/ld/ld_gfl-r50_from_gfl-r101_1x_coco.py'
PSPNET = 'configs/cwd/cwd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py'
SKD = 'configs/skd/skd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py'
SHARED = 'model.teacher=mmdet::retinanet/retinanet_r101_fpn_2x_coco.py'  # by CWD and FGD
FAST = [f'model.teacher.{x}' for x in ('precision=bf16', 'channels_last=True', 'compile=True')]
AMP = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=bfloat16']
# Recipes for one student, the settings of all, and the size of the pictures.
STEPS: dict[str, tuple[list[list[str]], list[str], tuple[int, int]]] = {
    'retinanet': ([[RETINANET], [FGD], [RETINANET, *FAST]], [SHARED], (800, 1216)),
    'retinanet-bf16': ([[RETINANET], [RETINANET, *FAST]], [SHARED, *AMP], (800, 1216)),
    'gfl': ([[GFL], [GFL, *FAST]], [], (800, 1216)),
    'pspnet': ([[PSPNET], [SKD], [PSPNET, *FAST]], [], (512, 1024)),
}


class Part(NamedTuple):
    """A command, its seconds at most, and the file where it writes figures, if it does."""

    command: list[str]
    limit: float
    figures: Path | None = None


def parts(device: str, tiny: bool, folder: Path) -> dict[str, Part]:
    """All there is to run.

    Args:
        device: ``'cuda'`` or ``'cpu'``.
        tiny: One round of the smallest of each.
        folder: For the figures.
    """
    limit = 70 if device == 'cuda' else SECONDS
    losses = ['benchmarks.losses', '--only', *(['cwd-logits'] if tiny else CORE)]
    losses += ['--small', '--rounds', '1'] if tiny else ['--rounds', '15']
    found = {'losses': _measured(losses, limit, device, folder / 'losses.json')}
    for name, ([(first, *settings), *others], options, size) in STEPS.items():
        step = ['kd_dense', 'benchmark', first]
        for other in [] if tiny else others:
            step += ['--against', *other]
        # A GPU would try a faster teacher by itself.
        options = [*options, 'model.teacher.precision=fp32', *settings]
        step += ['--size', *(['64', '96'] if tiny else map(str, size))]
        step += ['--batch-size', '2' if tiny else '8', '--rounds', '1' if tiny else '10']
        if not (tiny and AMP[0] in options):  # which asserts a GPU
            step += ['--cfg-options', *options]
            found[name] = _measured(step, limit, device, folder / f'{name}.json')
    tests = ['-m', 'pytest', '-q', '-m', 'gpu', 'tests/gpu']
    if device == 'cpu':
        tests += ['--gpu-dry-run', '-k', 'test_losses and CWDLoss and channel-kl']
    found['tests'] = Part([sys.executable, *tests], SECONDS)
    return found


def _measured(words: Sequence[str], limit: float, device: str, figures: Path) -> Part:
    module, *rest = words
    options = rest.index('--cfg-options') if '--cfg-options' in rest else len(rest)
    rest[options:options] = ['--device', device, '--json', str(figures)]
    return Part([sys.executable, '-m', module, *rest], limit, figures)


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Run a part, and say its status (None, if its time was over), seconds and figures.

    Args:
        part: What to run.
        seconds: What is left, if that is less than its limit.
    """
    start = time.monotonic()
    process = subprocess.Popen(part.command, cwd=ROOT, start_new_session=True)
    status: int | None
    try:
        status = process.wait(min(part.limit, seconds))
    except subprocess.TimeoutExpired:
        status = None
        os.killpg(process.pid, signal.SIGINT)  # pytest still ends with its summary
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    known = part.figures is not None and part.figures.exists()
    figures = json.loads(part.figures.read_text()) if part.figures and known else None
    return dict(status=status, seconds=time.monotonic() - start, figures=figures)


def tables(found: Mapping[str, Any]) -> str:
    """What the page says of the figures."""
    status = {
        name: 'its time was over' if one['status'] is None else f'status {one["status"]}'
        for name, one in found['parts'].items()
        if not _well(one)
    }
    figures = {name: one['figures'] for name, one in found['parts'].items() if one['figures']}
    lines = [f'{found["device"]}, torch {found["torch"]}, {found["seconds"]:.0f} s.', '']
    if losses := figures.pop('losses', None):
        lines += ['| loss | ours | reference | times faster | extra memory |', '|-|-|-|-|-|']
        lines += [_loss(one) for one in losses['results'].values()]
        lines.append('')
    if figures:
        head = 'recipe, size, batch', 'plain step', 'distilled step', 'time / floor', 'losses'
        lines += ['| ' + ' | '.join([*head, 'memory / floor']) + ' |', '|-|-|-|-|-|-|']
        for name, one in figures.items():
            lines += [_step(name, one, recipe) for recipe in one['recipes']]
        lines.append('')
    if status:
        lines += ['Not well: ' + '; '.join(map(': '.join, status.items())) + '.', '']
    return '\n'.join(lines)


def _well(found: Mapping[str, Any]) -> bool:
    """Whether a part did what it should; goals that it missed are in its figures."""
    return found['status'] == 0 or found['figures'] is not None


def _loss(found: Mapping[str, Any]) -> str:
    cells = [found['what'], _milliseconds(found['ours']), '', '']
    if 'reference' in found:
        cells[2:] = _milliseconds(found['reference']), f'{found["speed"]["median"]:.2f}'
    return '| ' + ' | '.join([*cells, f'{found["ours"]["peak_bytes"] / 1e6:.0f} MB']) + ' |'


def _step(name: str, found: Mapping[str, Any], recipe: str) -> str:
    one, calls = found['recipes'][recipe], found['calls']
    height, width = found['size']
    cells = [
        f'{name}: {recipe}, {height}x{width}, {found["batch_size"]}',
        *(_milliseconds(calls[call]) for call in ('plain step', one['step'])),
        '{median:.3f} ({low:.3f} to {high:.3f})'.format_map(one['step_to_floor']),
        f'{100 * one["losses_to_step"]["median"]:.1f} %',
        f'{one["peak_to_floor"]:.2f}',
    ]
    return '| ' + ' | '.join(cells) + ' |'


def _milliseconds(found: Mapping[str, float]) -> str:
    return f'{1000 * found["median"]:.3g} ms'


def write_page(text: str, page: Path) -> None:
    """Put the tables where the page has them."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f'{before}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='bash benchmarks/gpu.sh',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--tiny', action='store_true', help='one round of the smallest of each')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='parts whose name begins so')
    parser.add_argument(
        '--json', type=Path, default=Path('work_dirs/gpu.json'), metavar='FILE', help='all figures'
    )
    parser.add_argument('--page', type=Path, nargs='?', const=PAGE, help='write the tables there')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch finds no GPU; --device cpu --tiny goes the same ways without one')
    start = time.monotonic()
    end = start + SECONDS * (1 if args.device == 'cuda' else PATIENCE)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for name, part in parts(args.device, args.tiny, Path(folder)).items():
            if name.startswith(tuple(args.only or [''])):
                print(f'{name}: {" ".join(part.command[1:])}', flush=True)
                found[name] = run(part, max(end - time.monotonic(), 1))
    if not found:
        parser.error(f'no part begins with {" or ".join(args.only)}')
    results = dict(
        device=torch.cuda.get_device_name() if args.device == 'cuda' else 'cpu',
        torch=torch.__version__,
        seconds=time.monotonic() - start,
        parts=found,
    )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=1))
    print(tables(results))
    if args.page:
        write_page(tables(results), args.page)
    return int(not all(map(_well, found.values())))


if __name__ == '__main__':
    sys.exit(main())
