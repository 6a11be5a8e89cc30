"""How time and memory of each loss grow with positions, boxes and classes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import linear_regression
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.case import Call, forward_backward
from benchmarks.reference_fgd import make_boxes
from kd_dense.losses import (
    AttentionMapLoss,
    CWDLoss,
    DistillLoss,
    FGDLoss,
    HeadTargets,
    HolisticLoss,
    IntRALoss,
    LDImitationLoss,
    LDLoss,
    PairWiseLoss,
    PixelWiseLoss,
)
from kd_dense.measure import peak_memory, spread, time_interleaved

__all__ = ['CURVES', 'Curve', 'Size', 'draw_growth', 'measure_growth', 'report_growth']

STRIDE = 8
BINS = 17


class Size(NamedTuple):
    """What a cost may grow with."""

    height: int = 128
    width: int = 128
    boxes: int = 16
    classes: int = 20
    channels: int = 64

    @property
    def pixels(self) -> tuple[int, int]:
        return self.height * STRIDE, self.width * STRIDE

    def along(self, axis: str) -> int:
        return self.height * self.width if axis == 'positions' else int(getattr(self, axis))


AXES = {
    'positions': [
        Size(h, w) for h, w in ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256))
    ],
    'boxes': [Size(boxes=n) for n in (16, 32, 64, 128, 256)],
    'classes': [Size(classes=n) for n in (10, 20, 40, 80, 160)],
}


class Curve(NamedTuple):
    """A loss along an axis."""

    loss: str
    axis: str
    make: Callable[[Size, str], Call]

    @property
    def name(self) -> str:
        return f'{self.loss} {self.axis}'


def run(loss: DistillLoss, channels: int, size: Size, device: str, **needs: Any) -> Call:
    """The loss on a single map of two images."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(
        2, 2, channels, size.height, size.width, generator=generator
    ).to(device)
    student.requires_grad_()
    loss.to(device)
    return forward_backward(lambda: _total(loss(student, teacher, **needs)), [student])


def _total(result: Tensor | dict[str, Tensor]) -> Tensor:
    return torch.stack(list(result.values())).sum() if isinstance(result, dict) else result


def cwd(size: Size, device: str) -> Call:
    return run(CWDLoss(temperature=4.0), size.classes, size, device)


def pixel_wise(size: Size, device: str) -> Call:
    return run(PixelWiseLoss(), size.classes, size, device)


def pair_wise(size: Size, device: str) -> Call:
    return run(PairWiseLoss(), size.channels, size, device)


def holistic(size: Size, device: str) -> Call:
    torch.manual_seed(0)
    loss = HolisticLoss(size.classes, width=16).eval()
    return run(loss, size.classes, size, device)


def intra(size: Size, device: str) -> Call:
    torch.manual_seed(0)
    labels = torch.randint(size.classes, (2, *size.pixels), device=device)
    loss = IntRALoss(num_classes=size.classes)
    return run(loss, size.channels, size, device, segmentation=labels)


def attention_map(size: Size, device: str) -> Call:
    return run(AttentionMapLoss(), size.channels, size, device)


def fgd(size: Size, device: str) -> Call:
    boxes = make_boxes(2, size.boxes, size.pixels, device)
    shapes = dict(batch_shape=size.pixels, image_shapes=[size.pixels] * 2)
    return run(FGDLoss(size.channels), size.channels, size, device, boxes=boxes, **shapes)


def head(size: Size, device: str) -> tuple[list[list[Tensor]], HeadTargets]:
    """What a head of one level yields in student and teacher, and its targets."""
    generator = torch.Generator().manual_seed(0)
    shape = size.height, size.width
    y, x = (STRIDE * (i.flatten() + 0.5) for i in torch.meshgrid(
        torch.arange(shape[0]), torch.arange(shape[1]), indexing='ij'))  # fmt: skip
    half = 4 * STRIDE
    priors = torch.stack([x - half, y - half, x + half, y + half], 1)
    labels = torch.full((2, len(priors)), size.classes)
    labels[:, ::50] = 0
    targets = HeadTargets(
        priors=[priors.to(device)],
        labels=[labels.to(device)],
        label_weights=[torch.ones(2, len(priors), device=device)],
        valid=[torch.ones(2, len(priors), dtype=torch.bool, device=device)],
        boxes=make_boxes(2, size.boxes, size.pixels, device),
        num_classes=size.classes,
        strides=[STRIDE],
    )
    outputs = [
        [
            torch.randn(2, channels, *shape, generator=generator).to(device)
            for channels in (size.classes, 4 * BINS)
        ]
        for _ in range(2)
    ]
    return outputs, targets


def ld(size: Size, device: str) -> Call:
    (student, teacher), targets = head(size, device)
    loss = LDLoss(kd_vlr_weight=1.0)
    for maps in student:
        maps.requires_grad_()
    return forward_backward(lambda: _total(loss(student, teacher, head_targets=targets)), student)


def imitation(region: Any) -> Callable[[Size, str], Call]:
    def make(size: Size, device: str) -> Call:
        outputs, targets = head(size, device)
        needs: dict[str, Any] = dict(head_targets=targets)
        if region == 'gibox':
            needs.update(head_outputs=tuple(outputs))
        generator = torch.Generator().manual_seed(0)
        sizes = 2, 2, size.channels, size.height, size.width
        student, teacher = torch.randn(sizes, generator=generator).to(device)
        student.requires_grad_()
        loss = LDImitationLoss(region=region)
        return forward_backward(lambda: loss([student], [teacher], **needs), [student])

    return make


LOSSES: dict[str, tuple[Callable[[Size, str], Call], tuple[str, ...]]] = {
    'cwd': (cwd, ('positions', 'classes')),
    'skd-pixel': (pixel_wise, ('positions', 'classes')),
    'skd-pair': (pair_wise, ('positions',)),
    'skd-holistic': (holistic, ('positions', 'classes')),
    'intrakd': (intra, ('positions', 'classes')),
    'intrakd-maps': (attention_map, ('positions',)),
    'fgd': (fgd, ('positions', 'boxes')),
    'ld': (ld, ('positions', 'boxes', 'classes')),
    'ld-finegrained': (imitation('finegrained'), ('positions', 'boxes')),
    'ld-gibox': (imitation('gibox'), ('positions', 'classes')),
}
CURVES = [Curve(loss, axis, make) for loss, (make, axes) in LOSSES.items() for axis in axes]


def measure_growth(curve: Curve, rounds: int, device: str, small: bool = False) -> dict[str, Any]:
    """Seconds and bytes at each size, and the exponents of the powers that fit them best."""
    sizes = AXES[curve.axis]
    if small:
        sizes = [
            size._replace(height=size.height // 8, width=size.width // 8, channels=8)
            for size in sizes[:3]
        ]
    along = [size.along(curve.axis) for size in sizes]
    torch.manual_seed(0)
    calls = {str(i): curve.make(size, device) for i, size in enumerate(sizes)}
    gc.collect()
    gc.disable()
    try:
        times = time_interleaved(calls, rounds, device=device)
    finally:
        gc.enable()
    seconds = [spread(times[name])._asdict() for name in calls]
    memory = [peak_memory(call, device) for call in calls.values()]
    return dict(
        axis=curve.axis,
        sizes=along,
        seconds=seconds,
        peak_bytes=memory,
        exponents=dict(
            time=exponent(along, [found['median'] for found in seconds]),
            memory=exponent(along, memory),
        ),
    )


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a line through the points on logarithmic axes.

    Example:
        >>> exponent([1, 2, 4], [3.0, 6.0, 12.0])
        1.0
    """
    return linear_regression([log(x) for x in sizes], [log(y) for y in costs]).slope


def report_growth(curves: Sequence[Curve], results: Mapping[str, Any], surroundings: str) -> None:
    """Print the cost at the smallest and the largest size, and the exponents."""
    table = Table(title=f'Growth of cost, forward and backward: {surroundings}')
    for title in ('loss', 'with'):
        table.add_column(title)
    for title in ('from', 'to', 'ms', 'exponent', 'MB', 'exponent'):
        table.add_column(title, justify='right')
    for curve in curves:
        found = results[curve.name]
        first, last = (1000 * found['seconds'][i]['median'] for i in (0, -1))
        least, most = (found['peak_bytes'][i] / 1e6 for i in (0, -1))
        table.add_row(
            curve.loss, curve.axis, str(found['sizes'][0]), str(found['sizes'][-1]),
            f'{first:.2f}-{last:.2f}', f'{found["exponents"]["time"]:.2f}',
            f'{least:.2f}-{most:.2f}', f'{found["exponents"]["memory"]:.2f}',
        )  # fmt: skip
    Console(width=100).print(table)


# Told apart by colour-blind people too (Okabe and Ito); the losses of a method differ in marks.
STYLES = {
    'cwd': ('CWD', '#D55E00', 'o'),
    'skd-pixel': ('SKD pixel-wise', '#0072B2', 'o'),
    'skd-pair': ('SKD pair-wise', '#0072B2', 's'),
    'skd-holistic': ('SKD holistic', '#0072B2', '^'),
    'intrakd': ('IntRA-KD', '#CC79A7', 'o'),
    'intrakd-maps': ('IntRA-KD attention maps', '#CC79A7', 's'),
    'fgd': ('FGD', '#009E73', 'o'),
    'ld': ('LD', '#E69F00', 'o'),
    'ld-finegrained': ('LD imitation, fine-grained', '#E69F00', 's'),
    'ld-gibox': ('LD imitation, general instances', '#E69F00', '^'),
}
TITLES = {'positions': 'positions of the map', 'boxes': 'boxes in an image', 'classes': 'classes'}


def draw_growth(
    curves: Sequence[Curve], results: Mapping[str, Any], surroundings: str, path: Path
) -> None:
    """Draw time and memory on logarithmic axes, with lines of proportional growth."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from PIL import Image

    axes_shown = [axis for axis in AXES if any(curve.axis == axis for curve in curves)]
    rows = {'time': 'milliseconds', 'memory': 'megabytes'}
    figure, panels = plt.subplots(
        2, len(axes_shown), figsize=(4 * len(axes_shown), 7.4), squeeze=False, sharex='col',
        sharey='row', layout='constrained',
    )  # fmt: skip
    handles = {}
    for axis, column in zip(axes_shown, panels.T, strict=True):
        for panel, row in zip(column, rows, strict=True):
            for curve in curves:
                if curve.axis != axis:
                    continue
                found = results[curve.name]
                label, color, mark = STYLES[curve.loss]
                costs = (
                    [1000 * x['median'] for x in found['seconds']]
                    if row == 'time'
                    else [x / 1e6 for x in found['peak_bytes']]
                )
                sizes = found['sizes']
                handles[label] = panel.plot(
                    sizes, costs, color=color, marker=mark, markersize=4.5, linewidth=1.4
                )[0]
            panel.set_xscale('log', base=2)
            panel.set_yscale('log')
            panel.set_xticks(sizes, [f'{x:,}' for x in sizes])
            panel.minorticks_off()
            panel.grid(color='#dddddd', linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines[['top', 'right']].set_visible(False)
        column[-1].set_xlabel(TITLES[axis])
    for row, unit in zip(panels, rows.values(), strict=True):
        row[0].set_ylabel(unit)
        low, high = row[0].get_ylim()
        for panel in row:  # proportional growth: parallels of slope 1
            left, right = panel.get_xlim()
            start = low * left / right
            while start < high:
                (proportional,) = panel.plot(
                    [left, right], [start, start * right / left], color='#bbbbbb',
                    linewidth=0.9, linestyle=(0, (4, 3)), zorder=0,
                )  # fmt: skip
                start *= 10
            panel.set_xlim(left, right)
            panel.set_ylim(low, high)
    handles['proportional'] = proportional
    figure.suptitle('What a loss costs, forward and backward', fontsize=13)
    figure.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=4, frameon=False,
        fontsize=9, title=surroundings, title_fontsize=8,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    with Image.open(path) as image:  # few colours, so a small file
        image.convert('RGB').quantize(64).save(path, optimize=True)
