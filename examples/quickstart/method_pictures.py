"""Draw what each method looks at: on a picture of Scenes, with the models of the quickstart.

For each method one picture of teacher and student: which numbers of the two it compares, and with
what weight. Teachers are the committed ones; students are those that the quickstart has trained
alone, so run ``bash examples/quickstart/quickstart.sh`` first, then from the root of the
repository::

    python -m examples.quickstart.method_pictures

Detectors that the quickstart has none of (with regions, with queries, with old and new classes)
are in ``pictures``, the folder beside. They are trained here, alone, in some minutes, on the data
of the quickstart, unless they lie in the work directory.

What is shown is drawn as the test split of Scenes is, from its digits and photographs, but larger
than the pictures of the data set: at those sizes the higher levels of a feature pyramid would
have hardly a cell for each digit.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image

import kd_dense.mm  # noqa: F401
from examples.quickstart.jobs import CHECKPOINTS, CONFIGS, ROOT, TASKS
from examples.quickstart.scenes import CLASSES, Scene, draw_scene
from kd_dense.mm.files.checkpoint import load_weights, read_checkpoint, read_file
from kd_dense.mm.pictures.canvas import save
from kd_dense.mm.pictures.observe import compare
from kd_dense.mm.pictures.terms import draw_term
from kd_dense.mm.pictures.views import look

SIZE = 96  # pixels: three cells of the coarsest level
OLD = 5  # of the digits, which ERD's teacher knows; its student learns the others
OWN = Path('examples/quickstart/pictures')  # configs of detectors that are trained here
EVALUATION = ('cfg', 'dataloader', 'evaluator')
TRAINED = ('rcnn', 'detr', 'erd')
LARGEST = 150_000  # bytes of a picture with all its colours
# The task of each method, and the term that is drawn.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    # as in configs/quickstart/seg_cwd.py
    'cwd': ('seg', dict(tap='decode_head.conv_seg', loss=dict(type='CWDLoss', temperature=2.0))),
    'skd': ('seg', dict(tap='backbone.layer4', loss=dict(type='PairWiseLoss', scale=0.25))),
    'fgd': ('det', dict(tap='neck', loss=dict(type='FGDLoss'))),
    'ld': ('det', dict(tap='bbox_head', loss=dict(type='LDLoss'))),
    'predictions': (
        'det',
        dict(tap='bbox_head', cross_at=-1, loss=dict(type='CrossKDLoss', boxes='distributions')),
    ),
    'key_regions': (
        'det',
        dict(
            tap=dict(student='bbox_head.cls_convs.0', teacher='bbox_head.cls_convs.1'),
            loss=dict(type='PGDClassLoss'),
        ),
    ),
    'rois': (
        'rcnn',
        dict(
            tap='roi_head.bbox_head.fc_cls',
            shared_rois=True,
            loss=dict(type='DKDLoss', alpha=1.0, beta=0.25),
        ),
    ),
    'queries': ('detr', dict(tap='bbox_head', loss=dict(type='QueryBoxLoss'))),
    'erd': ('erd', dict(tap='bbox_head', loss=dict(type='ERDLoss'))),
    'intrakd': ('seg', dict(tap='backbone.layer4', loss=dict(type='IntRALoss'))),
    'logits': ('seg', dict(tap='decode_head.conv_seg', loss=dict(type='DISTLoss'))),
    # of two teachers: the other one is a student that has learnt from the first
    'camkd': (
        'seg',
        dict(
            tap='decode_head.conv_seg',
            teacher=['large', 'other'],
            loss=dict(type='CAMKDLoss', temperature=2.0),
        ),
    ),
    'edge_body': (
        'seg',
        dict(tap='decode_head.conv_seg', loss=dict(type='KDLoss', where='edge', edge=5)),
    ),
    'attention': ('seg', dict(tap='backbone.layer4', loss=dict(type='ATLoss', weight=1e3))),
    'masked': ('det', dict(tap='neck', loss=dict(type='FRSLoss'))),
    'prototypes': ('seg', dict(tap='backbone.layer4', loss=dict(type='IFVDLoss', weight=200.0))),
    'relations': ('seg', dict(tap='backbone.layer4', loss=dict(type='CrossImageLoss'))),
    # Of these the pages show students that have learnt them, in terms of these names: before,
    # adapter, generator, fusions and projection make nothing of sense. Two for 1,500 iterations,
    # with these weights.
    'mimic': ('seg', dict(tap='backbone.layer4', loss=dict(type='PKDLoss', weight=3.0))),
    'generation': ('seg', dict(tap='backbone.layer4', loss=dict(type='MGDLoss', weight=5e-3))),
    # And two for 200 more than the student alone.
    'review': ('seg', dict(tap='backbone', loss=dict(type='ReviewKDLoss', width=32))),
    'memory': (
        'seg',
        dict(
            tap='backbone.layer4',
            loss=dict(type='MemoryLoss', pixel_memory=200, region_memory=200),
        ),
    ),
}

CLASSES_OF = {'seg': (*CLASSES, 'background'), 'erd': CLASSES[OLD:]}  # of all others: CLASSES


class Pair(NamedTuple):
    """A student and its teacher: their configs and weights."""

    student: Path
    student_weights: Path
    teacher: Path
    teacher_weights: Path


def main() -> None:
    """Run the command line."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    MMLogger.get_instance('method_pictures', log_level='ERROR')
    warnings.simplefilter('ignore')  # of the frameworks, about their own parts
    scene = draw_scene('test', args.picture, SIZE)
    for task in dict.fromkeys(METHODS[method][0] for method in args.methods):
        terms = {m: METHODS[m][1] for m in args.methods if METHODS[m][0] == task}
        pair = train(task, args.work_dir) if task in TRAINED else quickstart(task, args)
        model, data = load(pair, terms, args.other), pack(task, scene)
        view = look(model, data, CLASSES_OF.get(task, CLASSES))
        compared, _ = compare(model, data, view)
        for method, found in compared.items():
            path = args.out / f'{method}.png'
            save(draw_term(view, found), path)
            if path.stat().st_size > LARGEST:
                Image.open(path).convert('RGB').quantize(
                    256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
                ).save(path)
            print(path)


def parse() -> argparse.Namespace:
    """Read the options, and find the students that are needed."""
    parser = argparse.ArgumentParser(
        prog='python -m examples.quickstart.method_pictures', description=__doc__
    )
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/quickstart'),
        help='of the quickstart that has trained the students (default: %(default)s)',
    )  # fmt: skip
    for task in TASKS:
        parser.add_argument(
            f'--student-{task}', type=Path, metavar='CHECKPOINT',
            help=f'(default: {task}_student_seed0/iter_600.pth in the work directory)',
        )  # fmt: skip
    parser.add_argument(
        '--other', type=Path, metavar='CHECKPOINT',
        help='the second teacher of camkd (default: seg_cwd_seed0/iter_600.pth there)',
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
    args.students = {}
    args.other = args.other or args.work_dir / 'seg_cwd_seed0' / 'iter_600.pth'
    for task in sorted({METHODS[method][0] for method in args.methods} - {*TRAINED}):
        named = getattr(args, f'student_{task}')
        student = named or args.work_dir / f'{task}_student_seed0' / 'iter_600.pth'
        if not student.is_file():
            parser.error(
                f'there is no student {student}: run bash examples/quickstart/quickstart.sh '
                f'first, or name a checkpoint with --student-{task}'
            )
        args.students[task] = student
    if 'camkd' in args.methods and not args.other.is_file():
        parser.error(
            f'there is no second teacher {args.other}: run bash examples/quickstart/quickstart.sh '
            'first, or name a checkpoint with --other'
        )
    return args


def quickstart(task: str, args: argparse.Namespace) -> Pair:
    """The models of the quickstart."""
    return Pair(
        CONFIGS / f'{task}_student.py',
        args.students[task],
        CONFIGS / f'{task}_teacher.py',
        CHECKPOINTS / f'{task}_teacher.pth',
    )


def train(task: str, work_dir: Path) -> Pair:
    """Other models, trained alone unless they are there."""
    weights: dict[str, Path] = {}
    for who in ('teacher', 'student'):
        config = Config.fromfile(OWN / f'{task}_{who}.py')
        folder = work_dir / f'{task}_{who}'
        weights[who] = folder / f'iter_{config.train_cfg.max_iters}.pth'
        if weights[who].is_file():
            continue
        if not Path(config.data_root).is_dir():
            raise SystemExit(
                f'there are no data in {config.data_root}: run '
                'bash examples/quickstart/quickstart.sh first'
            )
        if 'teacher' in config.model:
            config.model.teacher.checkpoint = str(weights['teacher'])
        print(f'training {task}_{who} for {config.train_cfg.max_iters} iterations', flush=True)
        config.merge_from_dict(dict(work_dir=str(folder), log_level='ERROR'))
        config.update({f'{s}_{x}': None for s in ('val', 'test') for x in EVALUATION})
        Runner.from_cfg(config).train()
    return Pair(
        OWN / f'{task}_student.py', weights['student'], OWN / f'{task}_teacher.py',
        weights['teacher'],
    )  # fmt: skip


def load(pair: Pair, terms: dict[str, dict[str, Any]], other: Path) -> Any:
    """Build a student with its teachers, and load all."""
    student = Config.fromfile(pair.student)
    teacher: dict[str, Any] = dict(config=str(pair.teacher), checkpoint=str(pair.teacher_weights))
    if any('teacher' in term for term in terms.values()):
        second = dict(config=str(pair.student), checkpoint=str(other))
        teacher = dict(large=teacher, other=second)
        terms = {name: {'teacher': 'large', **term} for name, term in terms.items()}
    with DefaultScope.overwrite_default_scope(student.default_scope):
        model: Any = MODELS.build(
            dict(
                type='kd_dense.Distilled',
                student=student.model.get('student', student.model),
                teacher=teacher,
                terms=terms,
            )
        )
    checkpoint = pair.student_weights
    weights = read_checkpoint(str(checkpoint))
    load_weights(model, {**_kd(model, checkpoint), **weights}, str(checkpoint))
    return model.eval()


def _kd(model: Any, checkpoint: Path) -> dict[str, Any]:
    """Adapters and other layers of the terms, as they begin where nothing has trained them."""
    own = {k: v for k, v in model.state_dict().items() if k.startswith('kd.')}
    learnt = read_file(str(checkpoint)).get('state_dict', {})
    return {k: learnt.get(k, v) for k, v in own.items()}


def pack(task: str, scene: Scene) -> dict[str, Any]:
    """A scene with its ground truth, as a batch of one."""
    size = (SIZE, SIZE)  # nothing is padded
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size)
    sample: Any
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
        if task == 'erd':  # there are labels of the new classes alone
            objects = objects[objects.labels >= OLD]
            objects.labels -= OLD
        sample = DetDataSample(metainfo=shape, gt_instances=objects)
    image = torch.from_numpy(np.ascontiguousarray(scene.image[..., ::-1]))  # BGR
    return dict(inputs=[image.permute(2, 0, 1)], data_samples=[sample])


if __name__ == '__main__':
    main()
