"""Draw what each method looks at: on a picture of Scenes, with the models of the quickstart.

For each method one picture of teacher and student: which numbers of the two it compares, and with
what weight. Teachers are the committed ones; students are those that the quickstart has trained
alone, so run ``bash tools/quickstart.sh`` first.

What is shown is drawn as the test split of Scenes is, from its digits and photographs, but larger
than the pictures of the data set: at those sizes the higher levels of a feature pyramid would
have hardly a cell for each digit.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from torch import Tensor

import kd_dense.mm  # noqa: F401
from kd_dense.losses import cwd_loss
from kd_dense.losses.fgd import FGDLoss, attentions, box_masks, mean_activations
from kd_dense.losses.intrakd import region_affinities, region_masks, region_moments
from kd_dense.losses.ld import mean_kl
from kd_dense.losses.ld_regions import centers, vlr_region
from kd_dense.losses.skd import unit_nodes
from kd_dense.mm import head_targets
from kd_dense.mm.checkpoint import load_weights, read_checkpoint
from kd_dense.taps import Taps
from make_scenes import BACKGROUND, CLASSES, Scene, draw_scene
from quickstart import CHECKPOINTS, CONFIGS, ROOT, TASKS
from quickstart_report import plt

Array = NDArray[Any]

SIZE = 96  # pixels: three cells of the coarsest level
TEMPERATURE = 2.0  # of CWD on the class logits, as in configs/quickstart/seg_cwd.py
NODES = 0.25  # side of a node of SKD, as a share of the map

# Told apart by colour-blind people too (Okabe and Ito).
YELLOW, TEACHER, STUDENT, MARK = '#F0E442', '#E69F00', '#0072B2', '#D55E00'
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9.5,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
}


@dataclass
class Pair:
    """Teacher and student of one task, and the picture that they are shown."""

    scene: Scene
    student: Any
    teacher: Any
    sample: Any

    def record(self, *taps: str, of_student: str | None = None) -> tuple[Taps, Taps]:
        """Record taps of student and teacher, while they compute their own losses."""
        names = [*taps, of_student] if of_student else [*taps]
        both = Taps(names), Taps(taps)
        image = torch.from_numpy(np.ascontiguousarray(self.scene.image[..., ::-1]))  # BGR
        for record, model in zip(both, (self.student, self.teacher), strict=True):
            batch = dict(inputs=[image.permute(2, 0, 1)], data_samples=[self.sample])
            with torch.no_grad(), record.on(model):
                model(**model.data_preprocessor(batch), mode='loss')
        return both

    @property
    def boxes(self) -> Tensor:
        boxes: Tensor = self.sample.gt_instances.bboxes
        return boxes


def load(task: str, student: Path, scene: Scene) -> Pair:
    """Build and load the models of a task, and wrap the ground truth as they expect it."""
    models: list[Any] = []
    for name, checkpoint in (
        ('student', student),
        ('teacher', CHECKPOINTS / f'{task}_teacher.pth'),
    ):
        config = Config.fromfile(CONFIGS / f'{task}_{name}.py')
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = MODELS.build(config.model).eval()
        load_weights(model, read_checkpoint(str(checkpoint)), str(checkpoint))
        models.append(model)
    size = (SIZE, SIZE)  # nothing is padded
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size)
    if task == 'seg':
        labels = torch.from_numpy(scene.labels).long()
        sample = SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=labels[None]))
    else:
        corners = [m.nonzero()[::-1] for m in scene.masks]
        boxes = torch.tensor(
            [[x.min(), y.min(), x.max() + 1, y.max() + 1] for x, y in corners],
            dtype=torch.float32,
        )
        objects = InstanceData(bboxes=boxes, labels=torch.tensor(scene.digits))
        sample = DetDataSample(metainfo=shape, gt_instances=objects)
    return Pair(scene, models[0], models[1], sample)


# ---- parts of pictures


def begin(height: float, title: str, subtitle: str) -> Any:
    """Begin a figure, as tall as ``height`` inches, that is shown 900 pixels wide."""
    figure: Any = plt.figure(figsize=(9, height), layout='constrained')
    figure.text(0.5, 1 - 0.08 / height, title, ha='center', va='top', fontsize=13, weight='bold')
    figure.text(0.5, 1 - 0.36 / height, subtitle, ha='center', va='top', fontsize=9.5)
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.99 - 0.6 / height))
    return figure


def frame(axis: Any, title: str = '') -> None:
    """Show an axis as a picture: no ticks, the size of the scene."""
    axis.set(xticks=[], yticks=[], xlim=(0, SIZE), ylim=(SIZE, 0), title=title)
    axis.set_aspect('equal')


def paint(axis: Any, values: Array, **options: Any) -> Any:
    """Paint a map or a picture at the size of the scene."""
    return axis.imshow(values, extent=(0, SIZE, SIZE, 0), interpolation='nearest', **options)


def outline(axis: Any, masks: Sequence[Array]) -> None:
    """Draw the edges of regions in white on black."""
    middle = np.arange(SIZE) + 0.5
    for mask in masks:
        for color, width in (('black', 2.0), ('white', 0.9)):
            axis.contour(middle, middle, mask, [0.5], colors=color, linewidths=width)


def tag(axis: Any, x: float, y: float, text: str) -> None:
    """Write a name to the left of a point."""
    axis.text(
        x, y, text, fontsize=8, weight='bold', ha='right', va='top',
        bbox=dict(facecolor=YELLOW, edgecolor='none', pad=1),
    )  # fmt: skip


def draw_boxes(axis: Any, pair: Pair, color: str = YELLOW) -> None:
    for x1, y1, x2, y2 in pair.boxes.tolist():
        for shade, width in (('black', 2.2), (color, 1.1)):
            axis.add_patch(
                plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=shade, lw=width)
            )


def name_boxes(axis: Any, pair: Pair) -> None:
    """Say on the left of each box which digit is in it."""
    for (x1, y1, *_), digit in zip(pair.boxes.tolist(), pair.scene.digits, strict=True):
        tag(axis, x1 - 1.5, y1, CLASSES[digit])


def draw_digits(axis: Any, scene: Scene) -> None:
    """Draw the picture and say which digits there are."""
    paint(axis, scene.image)
    for mask, digit in zip(scene.masks, scene.digits, strict=True):
        rows, columns = mask.nonzero()
        tag(axis, columns.min() - 1, rows.min(), CLASSES[digit])


def draw_grid(axis: Any, cells: int) -> None:
    """Draw the edges of square cells, so many in a row."""
    edges = np.linspace(0, SIZE, cells + 1)
    axis.hlines(edges, 0, SIZE, color='white', lw=0.6)
    axis.vlines(edges, 0, SIZE, color='white', lw=0.6)


def pale(scene: Scene) -> Array:
    """The picture in pale grey, to paint on."""
    grey: Array = np.repeat(90 + 0.55 * scene.image.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    return grey


def draw_matrix(
    axis: Any, values: Array, names: Sequence[str], title: str, numbers: str = '', **options: Any
) -> Any:
    """Draw a matrix, if wanted with its numbers in the given format."""
    image = axis.imshow(values, aspect='auto' if numbers else 'equal', **options)
    axis.set_title(title)
    every = slice(None, None, 1 if len(names) < 10 else 3)  # no room for more
    axis.set_xticks(range(len(names))[every], names[every])
    axis.set_yticks(range(len(names))[every], names[every])
    axis.tick_params(length=0)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            dark = np.dot(image.to_rgba(value)[:3], (0.3, 0.6, 0.1)) < 0.45
            axis.text(
                column, row, format(value, numbers), ha='center', va='center', fontsize=8,
                color='white' if dark else 'black',
            )  # fmt: skip
    return image


# ---- the methods


def cwd(pair: Pair) -> Any:
    """Class channels as logits and as distributions over positions."""
    student, teacher = (t['decode_head.conv_seg'][0] for t in pair.record('decode_head.conv_seg'))
    differ = {
        digit: cwd_loss(
            student[:, digit : digit + 1], teacher[:, digit : digit + 1], TEMPERATURE
        ).item()
        for digit in pair.scene.digits
    }
    ordered = sorted(differ, key=lambda digit: differ[digit])
    chosen = list(dict.fromkeys([ordered[-1], ordered[0]]))  # they differ most, and least
    logits = torch.stack([teacher[0], student[0]])[:, chosen]
    shares = 100 * (logits / TEMPERATURE).flatten(2).softmax(2).view_as(logits)

    figure = begin(
        1.55 + 1.85 * len(chosen),
        'CWD: where does each class channel look?',
        'A softmax over all positions makes a channel of logits a distribution: '
        'how much of the channel each position gets. That is compared.',
    )
    axes = figure.subplots(len(chosen), 5, squeeze=False)
    for index, (row, digit) in enumerate(zip(axes, chosen, strict=True)):
        draw_digits(row[0], pair.scene)
        frame(row[0], '' if index else 'picture and classes')
        row[0].set_ylabel(f'channel of class {CLASSES[digit]}', weight='bold')
        titles = ('teacher: logits', 'student: logits', 'teacher: softmax', 'student: softmax')
        for axis, values, title in zip(
            row[1:], (*logits[:, index], *shares[:, index]), titles, strict=True
        ):
            whole = shares if 'softmax' in title else logits
            paint(axis, values.numpy(), vmin=whole.min().item(), vmax=whole.max().item())
            outline(axis, pair.scene.masks)
            frame(axis, '' if index else title)
        row[4].set_xlabel(f'KL × T²: {differ[digit]:.2f} nats')
    for columns, label in (
        (axes[:, 1:3], 'logit'),
        (axes[:, 3:5], f'share of a position, % (T = {TEMPERATURE:g})'),
    ):
        figure.colorbar(
            columns[0, 0].images[0], ax=columns, location='bottom', shrink=0.8, label=label
        )
    return figure


def skd(pair: Pair) -> Any:
    """Affinities of pooled nodes: of one node over the picture, and of all pairs."""
    student, teacher = (t['backbone.layer4'][0] for t in pair.record('backbone.layer4'))
    nodes = (unit_nodes(x, NODES, True)[0] for x in (student, teacher))
    ours, theirs = ((x.T @ x).numpy() for x in nodes)
    squares = (ours - theirs) ** 2
    node = int(squares.sum(1).argmax())
    count = round(len(ours) ** 0.5)  # picture and map are square
    edges = np.linspace(0, SIZE, count + 1)

    figure = begin(
        7.1,
        'SKD, pair-wise: how alike are the regions of a picture to each other?',
        f'Max pooling (scale {NODES}) makes the map {count} × {count} nodes; '
        'the affinity of two nodes is the cosine between their features.',
    )
    axes = figure.subplots(2, 3)
    low = min(ours.min(), theirs.min())
    paint(axes[0, 0], pair.scene.image)
    for axis, values in ((axes[0, 1], theirs), (axes[0, 2], ours)):
        paint(axis, values[node].reshape(count, count), vmin=low, vmax=1)
    titles = (
        'picture and nodes; marked: {}',
        'teacher: affinity to node {}',
        'student: affinity to node {}',
    )
    for axis, title in zip(axes[0], titles, strict=True):
        draw_grid(axis, count)
        if axis is not axes[0, 0]:
            outline(axis, pair.scene.masks)
        frame(axis, title.format(node + 1))
        row, column = divmod(node, count)
        axis.add_patch(
            plt.Rectangle(
                (edges[column], edges[row]), edges[1], edges[1], fill=False, ec=MARK, lw=3
            )
        )
    for index in range(len(ours)):
        row, column = divmod(index, count)
        axes[0, 0].text(
            edges[column] + 1, edges[row] + 1, str(index + 1), va='top', fontsize=8,
            color='white', bbox=dict(facecolor='black', edgecolor='none', pad=0.8, alpha=0.6),
        )  # fmt: skip
    node_names = [str(index + 1) for index in range(len(ours))]
    matrices = (theirs, 'teacher: all pairs'), (ours, 'student: all pairs')
    for axis, (values, title) in zip(axes[1, :2], matrices, strict=True):
        image = draw_matrix(axis, values, node_names, title, vmin=low, vmax=1)
    apart = draw_matrix(
        axes[1, 2],
        squares,
        node_names,
        'squared difference; loss: its mean',
        vmin=0,
        cmap='cividis',
    )
    for axis in axes[1]:
        axis.set(xlabel='node')
        axis.add_patch(plt.Rectangle((-0.5, node - 0.5), len(ours), 1, fill=False, ec=MARK, lw=2))
    axes[1, 0].set_ylabel('node')
    figure.colorbar(
        image, ax=axes[1, :2], location='bottom', shrink=0.7, label='affinity (cosine), both rows'
    )
    figure.colorbar(apart, ax=axes[1, 2], location='bottom', label='(difference of affinities)²')
    return figure


def fgd(pair: Pair) -> Any:
    """Masks, the teacher's attention and their product, on each level."""
    levels = pair.record('neck')[1]['neck']
    loss = FGDLoss(channels=levels[0].shape[1])
    alpha, beta = (1e3 * loss.weights[name] for name in ('foreground', 'background'))
    figure = begin(
        1.05 + 2.1 * len(levels),
        'FGD: which differences of the features count, and how much?',
        f'weight of a cell = ({alpha:g} × foreground + {beta:g} × background) × attention / 1000; '
        'attention to channels comes on top',
    )
    axes = figure.subplots(len(levels), 5)
    for index, (row, maps) in enumerate(zip(axes, levels, strict=True)):
        size = (maps.shape[2], maps.shape[3])
        foreground, background = (
            m[0].numpy() for m in box_masks([pair.boxes], [(SIZE, SIZE)], size)
        )
        attention = attentions(*mean_activations(maps.flatten(2).abs()), loss.temperature)[0]
        where = attention.view(size).numpy()
        paint(row[0], pair.scene.image)
        draw_grid(row[0], size[0])
        draw_boxes(row[0], pair)
        name_boxes(row[0], pair)
        frame(row[0], '' if index else 'picture, boxes, cells')
        row[0].set_ylabel(f'level {index + 1}: cells of {SIZE // size[0]} px', weight='bold')
        for axis, values, title in (
            (row[1], foreground, 'foreground\n1 / cells of the box'),
            (row[2], background, 'background\n1 / cells off all boxes'),
            (row[3], where, "teacher's attention\nto positions, mean 1"),
            (row[4], (alpha * foreground + beta * background) * where, 'weight of a cell\n× 1000'),
        ):
            cmap = plt.get_cmap('viridis').with_extremes(bad='#D8D8D8')
            image = paint(axis, np.ma.masked_equal(values, 0), cmap=cmap, vmin=0)
            draw_boxes(axis, pair, 'white')
            frame(axis, '' if index else title)
            if values.any():
                below = axis.inset_axes((0.04, -0.13, 0.92, 0.06))
                figure.colorbar(
                    image, cax=below, orientation='horizontal', ticks=MaxNLocator(3, min_n_ticks=2)
                )
            else:
                axis.text(SIZE / 2, SIZE / 2, 'none', ha='center', va='center', fontsize=11)
    return figure


def ld(pair: Pair) -> Any:
    """The two regions on each level, and the distributions at one anchor."""
    student, teacher = pair.record('bbox_head', of_student='bbox_head.get_targets')
    (returned,) = student.returned('bbox_head.get_targets')
    maps = student['bbox_head']
    targets = head_targets.read(pair.student.bbox_head, returned, maps, [pair.sample])
    levels = len(targets.sizes)
    main = targets.positive[0]
    vlr = vlr_region(targets.priors, torch.cat(targets.valid, 1), targets.boxes)[0]
    points = centers(torch.cat(targets.priors))
    # (A, 4 sides, bins)
    ours, theirs = (
        torch.cat([x[0].flatten(1).T.unflatten(1, (4, -1)) for x in m[levels : 2 * levels]])
        for m in (maps, teacher['bbox_head'])
    )
    apart = mean_kl(ours, theirs, temperature=1.0, dim=2).sum(1)
    chosen = int(torch.where(main, apart, 0).argmax())
    level_of = torch.arange(levels).repeat_interleave(torch.tensor(targets.sizes))
    stride = targets.strides[int(level_of[chosen])]

    figure = begin(
        6.6,
        'LD: which anchors count, and what is compared there?',
        "Main region: the head's positives. Valuable localization region (VLR): "
        'anchors that fit a box less well. An anchor may be both.',
    )
    above, below = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    x, y = points.T.numpy()
    for level, axis in enumerate(above.subplots(1, levels)):
        here = (level_of == level).numpy()
        paint(axis, pale(pair.scene))
        draw_boxes(axis, pair)
        name_boxes(axis, pair)
        axis.plot(x[here], y[here], 'k.', ms=2.5, label='other anchors (centres)', clip_on=False)
        valuable = here & (vlr > 0).numpy()
        dots = axis.scatter(
            x[valuable], y[valuable], c=vlr[valuable], s=42, vmin=0, vmax=vlr.max().item(),
            zorder=3, clip_on=False,
        )  # fmt: skip
        positive = here & main.numpy()
        axis.plot(
            x[positive], y[positive], 'o', ms=9, mfc='none', mec=MARK, mew=2, label='main region',
            zorder=4,
        )  # fmt: skip
        axis.plot([], [], 'o', ms=6.5, color=dots.cmap(0.7), label='VLR')
        if here[chosen]:
            axis.plot(
                x[chosen], y[chosen], 's', ms=17, mfc='none', mec='black', mew=2, zorder=5,
                label='shown below',
            )  # fmt: skip
        frame(axis, f'level {level + 1}: one anchor every {targets.strides[level]} px')
    above.colorbar(
        dots, ax=above.axes, shrink=0.8, pad=0.02, label='weight in the VLR: IoU with the box'
    )
    handles = {
        text: h for a in above.axes for h, text in zip(*a.get_legend_handles_labels(), strict=True)
    }
    above.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=4, frameon=False
    )

    own = [
        box
        for box, digit in zip(pair.boxes, pair.scene.digits, strict=True)
        if digit == torch.cat(targets.labels, 1)[0, chosen]
    ]
    point = points[chosen]
    box = min(own, key=lambda b: (centers(b) - point).norm())
    true = torch.cat([point - box[:2], box[2:] - point]).tolist()
    bins = stride * np.arange(ours.shape[2])
    below.suptitle(
        f'predicted at the marked anchor: distance of each side of the box, {len(bins)} bins',
        fontsize=9.5,
    )
    axes = below.subplots(1, 4, sharey=True)
    for side, axis in enumerate(axes):
        for maps_, shift, color, who in (
            (theirs, -0.2, TEACHER, 'teacher'),
            (ours, 0.2, STUDENT, 'student'),
        ):
            share = 100 * maps_[chosen, side].softmax(0)
            axis.bar(bins + shift * stride, share, 0.4 * stride, color=color, label=who)
        axis.axvline(true[side], color='black', ls='--', lw=1, label='ground truth')
        name = ('left', 'top', 'right', 'bottom')[side]
        axis.set(title=name, xlabel='distance, px', xticks=bins[::2])
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('probability, %')
    below.legend(
        *axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False
    )
    return figure


def intrakd(pair: Pair) -> Any:
    """Areas of the classes, and how alike their features are."""
    student, teacher = (t['backbone.layer4'][0] for t in pair.record('backbone.layer4'))
    labels = pair.sample.gt_sem_seg.data
    size = student.shape[-2:]
    masks = region_masks(labels, size, num_classes=len(CLASSES) + 1)
    present = masks[0].any(1).nonzero()[:, 0].tolist()
    names = [CLASSES[c] if c < BACKGROUND else 'backgr.' for c in present]
    ours, theirs = (
        region_affinities(region_moments(x, masks[:, present]))[0].numpy()
        for x in (student, teacher)
    )

    figure = begin(
        7.2,
        'IntRA-KD: how alike are the classes of a picture to each other?',
        'Mean, variance and skewness of the features describe the area of a class; '
        'affinity: the cosine between two classes.',
    )
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2.9))
    axes = above.subplots(1, len(present) + 1)
    draw_digits(axes[0], pair.scene)
    frame(axes[0], 'picture')
    for axis, label, name in zip(axes[1:], present, names, strict=True):
        paint(axis, pale(pair.scene))
        area = masks[0, label].view(size).numpy()
        colors = np.zeros((*size, 4))
        colors[:] = to_rgba(STUDENT)
        colors[..., 3] = 0.6 * area
        paint(axis, colors)
        outline(axis, [pair.scene.labels == label])
        frame(axis, f'area of {name}')
    axes = below.subplots(3, 3)
    squares = (ours - theirs) ** 2
    for column, moment in enumerate(('mean', 'variance', 'skewness')):
        low = min(ours.min(), theirs.min())
        for row, (values, who) in enumerate(((theirs, 'teacher'), (ours, 'student'))):
            image = draw_matrix(
                axes[row, column],
                values[column],
                names,
                f'{moment}: {who}',
                '.2f',
                vmin=low,
                vmax=1,
            )
        apart = draw_matrix(
            axes[2, column], squares[column], names, f'{moment}: squared difference', '.2f',
            vmin=0, vmax=squares.max(), cmap='cividis',
        )  # fmt: skip
    below.colorbar(image, ax=axes[:2], shrink=0.8, label='affinity (cosine)')
    below.colorbar(apart, ax=axes[2], label='(difference)²; loss:\nthe mean of all')
    return figure


METHODS: dict[str, tuple[str, Callable[[Pair], Any]]] = {
    'cwd': ('seg', cwd),
    'skd': ('seg', skd),
    'fgd': ('det', fgd),
    'ld': ('det', ld),
    'intrakd': ('seg', intrakd),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/quickstart'),
        help='of the quickstart that has trained the students (default: %(default)s)',
    )  # fmt: skip
    for task in TASKS:
        parser.add_argument(
            f'--student-{task}', type=Path, metavar='CHECKPOINT',
            help=f'(default: {task}_student_seed0/iter_600.pth in the work directory)',
        )  # fmt: skip
    parser.add_argument('--out', type=Path, default=Path('docs/methods'))
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument(
        '--picture', type=int, default=40, help='number in the test split (default: %(default)s)'
    )
    args = parser.parse_args()
    if args.picture < 0:
        parser.error(f'--picture must be at least 0, got {args.picture}')
    os.chdir(ROOT)
    students = {}
    for task in dict.fromkeys(METHODS[method][0] for method in args.methods):
        named = getattr(args, f'student_{task}')
        students[task] = named or args.work_dir / f'{task}_student_seed0' / 'iter_600.pth'
        if not students[task].is_file():
            parser.error(
                f'there is no student {students[task]}: run bash tools/quickstart.sh first, or '
                f'name a checkpoint with --student-{task}'
            )
    args.out.mkdir(parents=True, exist_ok=True)
    MMLogger.get_instance('method_pictures', log_level='ERROR')
    warnings.simplefilter('ignore')  # of the frameworks, about their own parts
    scene = draw_scene('test', args.picture, SIZE)
    pairs = {task: load(task, student, scene) for task, student in students.items()}
    for method in args.methods:
        task, draw = METHODS[method]
        with plt.rc_context(STYLE):
            figure = draw(pairs[task])
            figure.savefig(args.out / f'{method}.png', dpi=125, pil_kwargs=dict(optimize=True))
        plt.close(figure)
        print(args.out / f'{method}.png')


if __name__ == '__main__':
    main()
