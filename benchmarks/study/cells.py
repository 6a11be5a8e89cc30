"""The grid of the study: which data, models and schedules, and what a run is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OWN = Path('benchmarks/study/configs')
QUICKSTART = Path('configs/quickstart')
WORK = Path('work_dirs/study')

METRICS = {'segmentation': ('mIoU', 1.0), 'detection': ('coco/bbox_mAP', 100.0)}
SCHEDULES = ('short', 'plateau')
SEEDS = (0, 1, 2)
# Methods that compare places of the student with each other.
WITHIN = ('sad', 'sad from the start shared')


class Data(NamedTuple):
    """A set of pictures and the pair that is trained on it.

    Attributes:
        task: Segmentation or detection.
        student: Its config.
        teacher: Its config.
        iterations: Of the student, by schedule; of the teacher under ``'teacher'``.
        needs: The folder that must exist.
        inherit: Parts that the student can start from the teacher's weights.
        weights: Of the teacher, where they are committed.
        pictures: How many the training set has, where only some of them have labels.
        labelled: One of how many has them.
        whole: The set whose teacher knows the labels of all.
    """

    task: str
    student: Path
    teacher: Path
    iterations: Mapping[str, int]
    needs: Path
    inherit: tuple[str, ...] = ()
    weights: Path | None = None
    pictures: int = 0
    labelled: int = 1
    whole: str = ''

    @property
    def taught(self) -> int:
        """How long the teacher is trained: 0 where its weights are there."""
        return self.iterations['teacher'] if self.weights is None else 0


def _real(name: str, task: str, short: int, plateau: int, teacher: int, *inherit: str) -> Data:
    return Data(
        task,
        OWN / f'{name}_student.py',
        OWN / f'{name}_teacher.py',
        dict(short=short, plateau=plateau, teacher=teacher),
        Path('data/real') / name.partition('_')[0],
        inherit,
    )


def _scenes(task: str, teacher: int) -> Data:
    short = dict(seg='segmentation', det='detection')[task]
    return Data(
        short,
        QUICKSTART / f'{task}_student.py',
        QUICKSTART / f'{task}_teacher.py',
        dict(short=600, plateau=2400, teacher=teacher),
        Path('data/scenes'),
        HEADS if task == 'det' else (),
        QUICKSTART / 'checkpoints' / f'{task}_teacher.pth',
    )


HEADS = ('neck', 'bbox_head')
SETS: dict[str, Data] = {
    'scenes-segmentation': _scenes('seg', 1600),
    'scenes-detection': _scenes('det', 2000),
    'parts': Data(
        'detection',
        OWN / 'parts_student.py',
        OWN / 'parts_teacher.py',
        dict(short=600, plateau=1600, teacher=1600),
        Path('data/parts-test'),
        HEADS,
    ),
    'camvid': _real('camvid', 'segmentation', 600, 2400, 1600),
    'camvid_mit': _real('camvid_mit', 'segmentation', 600, 2400, 800),
    'cards': _real('cards', 'detection', 600, 1600, 3200, *HEADS),
    'bccd': _real('bccd', 'detection', 600, 1600, 1600, *HEADS),
    'neudet': _real('neudet', 'detection', 600, 1600, 1600, *HEADS),
    'neudet_rcnn': _real(
        'neudet_rcnn', 'detection', 600, 1600, 1600, 'neck', 'rpn_head', 'roi_head'
    ),
}


def _partly(name: str, pictures: int, labelled: int) -> Data:
    """A set of which only some pictures have labels, for its teacher as well."""
    iterations = {**SETS[name].iterations, 'teacher': 800}
    return SETS[name]._replace(
        iterations=iterations, pictures=pictures, labelled=labelled, whole=name
    )


SETS |= {
    'camvid10': _partly('camvid', 367, 10),
    'camvid25': _partly('camvid', 367, 4),
    'neudet10': _partly('neudet', 1152, 10),
    'neudet25': _partly('neudet', 1152, 4),
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        set: Of pictures.
        method: ``'teacher'``, ``'alone'``, or a name in `benchmarks.study.methods.METHODS`.
        weights: ``'published'`` or ``'shares'``; ``'-'`` where no term has any.
        schedule: How long: ``'short'`` or ``'plateau'``; of the teacher ``'teacher'``.
        control: ``'none'``; or ``'cpu_time'`` for a student alone that trains for as much CPU
            time as ``equals`` takes.
        equals: What a control is compared with.
        seed: Of start values and of the order of pictures.
        iterations: How long that is.
    """

    set: str
    method: str
    weights: str
    schedule: str
    seed: int
    iterations: int
    control: str = 'none'
    equals: str = ''

    @property
    def data(self) -> Data:
        return SETS[self.set]

    @property
    def teacher(self) -> bool:
        return self.method == 'teacher'

    @property
    def distils(self) -> bool:
        return self.method not in ('teacher', 'alone')

    @property
    def has_teacher(self) -> bool:
        return self.distils and self.method not in WITHIN

    @property
    def taught_by(self) -> Cell:
        """The training of its teacher."""
        return teacher_of(self.data.whole if 'full' in self.method.split('+') else self.set)

    @property
    def taught(self) -> int | None:
        """How long its teacher is trained, if it has one."""
        return self.taught_by.data.taught if self.has_teacher else None

    @property
    def checkpoint(self) -> Path:
        """The weights that it ends with."""
        committed = self.data.weights if self.teacher else None
        return committed or self.folder / f'iter_{self.iterations}.pth'

    @property
    def title(self) -> str:
        words = [self.set, self.method, *([self.weights] if self.weights != '-' else [])]
        words += [f'as {self.equals}'] if self.equals else []
        return ', '.join([*words, self.schedule, f'seed {self.seed}'])

    @property
    def model(self) -> str:
        """What a queue tells the costs of runs apart by."""
        return self.title

    @property
    def folder(self) -> Path:
        return WORK / self.title.replace(', ', '_').replace(' ', '-')

    def spec(self) -> dict[str, Any]:
        """What a run depends on, beside the code."""
        return asdict(self)

    def result(self) -> dict[str, Any] | None:
        """What the run wrote, if it has ended."""
        try:
            line = dict(json.loads((self.folder / 'result.json').read_text()))
        except FileNotFoundError:
            return None
        # another schedule of that name writes to the same folder
        return line if line['iterations'] in (0, self.iterations) else None

    def progress(self) -> float:
        """The part of its iterations that a run has done."""
        try:
            return float((self.folder / 'progress').read_text())
        except (FileNotFoundError, ValueError):
            return 0.0


def teacher_of(name: str) -> Cell:
    """The training of the teacher of a set."""
    iterations = SETS[name].iterations['teacher']
    return Cell(name, 'teacher', '-', 'teacher', 0, iterations)


def cell_of(line: Mapping[str, Any]) -> Cell:
    """The run that a line of the results is of."""
    about = line['set'], line['task']
    name = next(n for n, data in SETS.items() if (n.partition('-')[0], data.task) == about)
    own = ('method', 'weights', 'schedule', 'seed', 'iterations', 'control', 'equals')
    return Cell(name, **{key: line[key] for key in own})
