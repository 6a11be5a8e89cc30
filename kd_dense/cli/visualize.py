"""Show what teacher and student find in pictures, what each loss looks at, and where they differ.

    kd_dense visualize RECIPE --checkpoint work_dirs/RUN/epoch_12.pth

Writes one page, index.html, which needs no network and no scripts, and the pictures in it as PNG.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope
from rich.console import Console
from torch import nn

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.cli.config import add_config, add_options, chosen_config
from kd_dense.mm.configs import RequestError, build_model, distils, type_name
from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.files.checkpoint import load_weights, read_file, weights_of
from kd_dense.mm.pictures.canvas import save
from kd_dense.mm.pictures.differences import differences, draw_differences
from kd_dense.mm.pictures.observe import Compared, compare, predict
from kd_dense.mm.pictures.predictions import draw_predictions
from kd_dense.mm.pictures.terms import draw_term
from kd_dense.mm.pictures.views import View, class_names, load, look
from kd_dense.mm.teachers.average import AverageTeacher
from kd_dense.mm.teachers.foreign import predicts
from kd_dense.mm.teachers.several import called, each_teacher, plain

ALONE, DISTILLED, UNTRAINED = 'student alone', 'distilled student', 'untrained student'
FIRST = 4  # pictures, if none are chosen
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1130px; margin: 2em auto; padding: 0 1em }
h1, h2, td, li { overflow-wrap: anywhere }
h2 { border-top: 2px solid #999; margin-top: 3em; padding-top: .5em }
h3 { margin: 2em 0 0 }
img { max-width: 100%; height: auto; margin-top: .5em }
figure { margin: 1.5em 0 }
figcaption { font-weight: bold }
table { border-collapse: collapse }
td, th { border-bottom: 1px solid #999; padding: .2em 1em .2em 0; text-align: left }
"""


class Shown(NamedTuple):
    """A picture: its name on the page, the start of its files' names, and what was read."""

    title: str
    key: str
    data: dict[str, Any]


class Student(NamedTuple):
    """A student, and whether what distillation adds to it has been trained with it."""

    model: Any
    whole: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, 'of a recipe')
    parser.add_argument('--checkpoint', help='of the distilled student, from a run of the recipe')
    parser.add_argument(
        '--student-checkpoint',
        help="of the student without teacher, to compare with (default: the recipe's load_from)",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument('--images', nargs='+', metavar='FILE', help='files, without ground truth')
    chosen.add_argument(
        '--indices',
        nargs='+',
        type=int,
        metavar='N',
        help=f'entries of the data set (default: the first {FIRST})',
    )
    parser.add_argument(
        '--split', choices=['val', 'test'], default='val', help='data set (default: val)'
    )
    parser.add_argument(
        '--out', type=Path, help='folder of the page (default: visualize in the work directory)'
    )
    add_options(parser, launcher=False)


# ---- models


def build_students(
    config: Any, distilled: str | None, alone: str | None
) -> tuple[dict[str, Student], Any]:
    """Build the recipe's model once for each checkpoint, with the same teachers.

    Raises:
        RequestError: If the recipe cannot be built, a checkpoint is not there, or is of another
            model.
    """
    config.model.teacher = each_teacher(config.model.get('teacher'), plain)
    try:
        model = build_model(config)
        for guest in model.kd_plan.running.values():
            guest.teacher.load()
    except (ValueError, FileNotFoundError) as error:
        raise RequestError(f'{config.filename}: {error}') from error
    students = {}
    for name, source in ((ALONE, alone), (DISTILLED, distilled)):
        if source:
            one = copy.deepcopy(model)
            students[name] = Student(one, load_student(one, source))
    if not students:
        students[UNTRAINED] = Student(model, True)
    device = get_device()
    for student in students.values():
        student.model.to(device).eval()
    guests = model.kd_plan.running
    for guest in guests.values():
        guest.teacher.model.to(device)
        if isinstance(guest.teacher, AverageTeacher):
            guest.teacher.start(bare(model))
    return students, {called(name): guest.teacher.model for name, guest in guests.items()}


def load_student(model: nn.Module, source: str) -> bool:
    """Load a checkpoint of the student, with or without what distillation adds to it.

    Returns:
        Whether it has that.

    Raises:
        RequestError: If it cannot be read, or is the checkpoint of another model.
    """
    try:
        content = read_file(source)
        weights = weights_of(content, source)
        state = content.get('state_dict', content)
        ours = {k: v for k, v in state.items() if k.startswith('kd.')}
        own = {k: v for k, v in model.state_dict().items() if k.startswith('kd.')}
        load_weights(model, {**(ours or own), **weights}, source)
    except (ValueError, FileNotFoundError) as error:
        raise RequestError(str(error).partition(' teacher=dict')[0]) from error
    return bool(ours) or not own


# ---- pictures


def read_pictures(
    config: Any, split: str, images: Sequence[str] | None, indices: Sequence[int] | None
) -> tuple[list[Shown], tuple[str, ...]]:
    """Read the chosen pictures as the recipe reads those that it validates on.

    Returns:
        The pictures, and the names of the classes.

    Raises:
        RequestError: If there is no such picture, or no data set.
    """
    loader = config.get(f'{split}_dataloader')
    if not loader:
        raise RequestError(
            f'{config.filename} has no {split}_dataloader: pictures are read as it says'
        )
    if images:
        missing = [file for file in images if not Path(file).is_file()]
        if missing:
            raise RequestError(f'there is no picture {missing[0]} (looked in {Path.cwd()})')
        dataset = build_dataset({**loader.dataset, 'lazy_init': True})
        steps = find_pipeline(loader.dataset)
        read = Compose(without_annotations(steps))
        shown = []
        for number, file in enumerate(images):
            data = pseudo_collate([read(dict(img_path=file, img_id=number))])
            shown.append(Shown(file, f'{number}-{Path(file).stem}', data))
        return shown, class_names(dataset)
    dataset = build_dataset(loader.dataset)
    indices = [*range(min(FIRST, len(dataset)))] if indices is None else indices
    shown = []
    for index in indices:
        try:
            data = load(dataset, index)
        except (IndexError, FileNotFoundError) as error:
            raise RequestError(f'{split} data: {error}') from error
        path = data['data_samples'][0].metainfo.get('img_path', '')
        shown.append(Shown(f'{split} {index}: {Path(path).name}', f'{split}{index}', data))
    return shown, class_names(dataset)


def build_dataset(config: Mapping[str, Any]) -> Any:
    """Build a data set.

    Raises:
        RequestError: If its files are not there.
    """
    try:
        dataset = DATASETS.build(config)
        if not config.get('lazy_init'):
            len(dataset)
    except FileNotFoundError as error:
        raise RequestError(
            f'the data set cannot be read: {error}; put it where the config looks for it, or '
            'choose files with --images'
        ) from error
    if not config.get('lazy_init') and not len(dataset):
        raise RequestError(f'the data set of {config.get("data_root")} is empty')
    return dataset


def find_pipeline(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The steps that read a picture, in a data set or in the first that it wraps."""
    while 'pipeline' not in config and ('dataset' in config or 'datasets' in config):
        config = config['dataset'] if 'dataset' in config else config['datasets'][0]
    steps: Sequence[Mapping[str, Any]] = config['pipeline']
    return steps


def without_annotations(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps that a mere file can take."""
    return [step for step in steps if 'Annotations' not in type_name(step)]


# ---- the page


def show(
    shown: Shown, students: Mapping[str, Student], teachers: Any, classes: Any, out: Path
) -> str:
    """Draw everything of one picture, and return its part of the page, without the title."""
    last = students[[*students][-1]].model
    view = look(last, shown.data, classes)
    parts = []
    found = {
        whose: predict(teacher, shown.data, view)
        for whose, teacher in teachers.items()
        if predicts(teacher)
    }
    found |= {name: predict(one.model, shown.data, view) for name, one in students.items()}
    file = f'{shown.key}_predictions.png'
    save(draw_predictions(view, found), out / file)
    parts.append(_figure(file, 'Predictions'))
    compared = {name: compare(one.model, shown.data, view) for name, one in students.items()}
    for term, module in last.kd.items():
        parts.append(f'<h3>Term {escape(term)}</h3>')
        adapted = any(True for _ in module.adapters.parameters())
        seen: dict[str, Compared] = {
            name: maps[term]
            for name, (maps, _) in compared.items()
            if term in maps and (students[name].whole or not adapted)
        }
        reasons = [left_out[term] for _, left_out in compared.values() if term in left_out]
        if reasons:
            parts.append(f'<p>Not shown: it {escape(reasons[0])}.</p>')
        elif len(seen) < len(students):
            parts.append(
                '<p>Maps of the student go through an adapter that is trained with it: '
                f'{", ".join(name for name in students if name not in seen)} not shown, as the '
                'checkpoint does not have it.</p>'
            )
        if seen:
            parts += [*_term(shown.key, term, view, seen, out)]
    return '\n'.join(parts)


def _term(
    key: str, term: str, view: View, seen: Mapping[str, Compared], out: Path
) -> Iterator[str]:
    name, compared = [*seen.items()][-1]
    kind = type(compared.losses[0]).__name__
    values = ', '.join(f'{who} {one.value:.4g}' for who, one in seen.items())
    yield f'<p>{kind} at <code>{escape(compared.tap)}</code>. Weighted loss: {values}.</p>'
    file = f'{key}_{term}.png'
    save(draw_term(view, compared), out / file)
    yield _figure(file, f'What {kind} looks at: teacher and {name}')
    file = f'{key}_{term}_differences.png'
    save(draw_differences(view, {who: differences(one) for who, one in seen.items()}), out / file)
    yield _figure(file, 'Where student and teacher still differ')


def _figure(file: str, caption: str) -> str:
    text = escape(caption)
    return (
        f'<figure><figcaption>{text}</figcaption>'
        f'<a href="{quote(file)}"><img src="{quote(file)}" alt="{text}"></a></figure>'
    )


def write_page(
    path: Path,
    title: str,
    models: Sequence[tuple[str, str]],
    parts: Sequence[tuple[str, str]],
) -> None:
    """Put all pictures, each a title and its part of the page, on one page."""
    rows = ''.join(f'<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in models)
    links, body = '', ''
    for number, (name, part) in enumerate(parts):
        links += f'<li><a href="#{number}">{escape(name)}</a></li>'
        body += f'<h2 id="{number}">{escape(name)}</h2>\n{part}\n'
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<table>{rows}</table>\n<ul>{links}</ul>\n'
        f'{body}</body></html>\n',
        encoding='utf-8',
    )


def run(args: argparse.Namespace) -> None:
    config = chosen_config(args)
    if not distils(config):
        raise RequestError(
            f'{config.filename} is no recipe: expected model=dict(type="kd_dense.Distilled", '
            f'student=..., teacher=..., terms=...), got the model {type_name(config.get("model"))}'
        )
    out = args.out or Path(config.work_dir) / 'visualize'
    alone = args.student_checkpoint or config.get('load_from')
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        pictures, classes = read_pictures(config, args.split, args.images, args.indices)
        students, teachers = build_students(config, args.checkpoint, alone)
        out.mkdir(parents=True, exist_ok=True)
        console = Console()
        parts = []
        for shown in pictures:
            console.print(f'drawing {shown.title}', highlight=False)
            parts.append((shown.title, show(shown, students, teachers, classes, out)))
    guests = next(iter(students.values())).model.kd_plan.running
    models = [
        (called(name), f'{one.teacher.name}, {one.teacher.checkpoint or "untrained"}')
        for name, one in guests.items()
    ]
    sources = {ALONE: alone, DISTILLED: args.checkpoint, UNTRAINED: 'no checkpoint was given'}
    models += [(name, sources[name] or '') for name in students]
    write_page(out / 'index.html', Path(args.config).stem, models, parts)
    console.print(f'Wrote {out / "index.html"}.', highlight=False, soft_wrap=True)
