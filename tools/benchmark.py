"""Time whole training steps of recipes against the least that they can cost.

The floor of a distilled step is the student's plain training step and, beside it, the teacher's
layers up to its last tap, forward only, under the autocast of the student if there is one. It is
measured on models of its own, built without distillation, in the same rounds as the distilled
step.

The floor of its memory is what the plain step holds at its peak, the teacher's tapped maps, and
its largest layer: the largest sum of input and output of one module without children that runs
on the way to the last tap. Weights and the state of optimizers are not part of either.

Pictures, boxes and label maps are random, and so are all weights unless --pretrained is given;
learning rates are 0, so that all steps compute the same. Decoding and preprocessing of the
pictures are left out. Terms run at their full weight, whatever their schedules say.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from kd_dense.losses import HolisticLoss
from kd_dense.measure import Spread, peak_memory, ratio, spread, time_interleaved
from kd_dense.mm import CriticHook
from kd_dense.mm.probe import forward, needs_features_only
from kd_dense.mm.teacher import Teacher
from kd_dense.schedules import Schedule
from kd_dense.taps import Taps
from train import dicts_in, read_config

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.05
BOXES = 8  # in a picture; those of COCO have 7 on average
DETECTION_SIZE = (800, 1216)
PLAIN = 'plain step'


class Batch(NamedTuple):
    """A preprocessed batch: ``(N, 3, H, W)`` and a data sample for each picture."""

    inputs: Tensor
    samples: list[Any]


class Guest(NamedTuple):
    """The teacher of a recipe: the names of its calls, and what counts for the memory's floor."""

    minimal: str
    full: str
    maps: int  # bytes
    layer: int  # bytes


class Case(NamedTuple):
    """A recipe: the names of its calls; without a teacher, if all its weights are 0."""

    name: str
    step: str
    terms: dict[str, str]
    guest: Guest | None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a recipe')
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of all recipes',
    )
    args = parser.parse_args()
    if min(args.batch_size, args.rounds, args.threads or 1, *(args.size or [1])) < 1:
        parser.error('--batch-size, --rounds, --threads and both numbers of --size must be >= 1')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU')
    for words in args.against:
        if '=' in words[0]:
            parser.error(f'--against expects a recipe before its settings, got {words[0]}')
    return args


def named_configs(args: argparse.Namespace) -> dict[str, Config]:
    """Read all recipes; their names are those of the files and what is set for one alone."""
    chosen: list[tuple[str, list[str]]] = [(args.config, [])]
    for word in chain(*args.against):
        if '=' in word:
            chosen[-1][1].append(word)
        else:
            chosen.append((word, []))
    found: dict[str, Config] = {}
    for path, settings in chosen:
        config = read(path, [*(args.cfg_options or {}).items(), *map(_parsed, settings)], args)
        name = ' '.join([Path(path).stem, *settings])
        if name in found:
            raise SystemExit(f'{name} is named twice: change a setting, or leave one out')
        found[name] = config
        first = next(iter(found.values()))
        for key, ours, theirs in (
            ('student', config.model.student, first.model.student),
            ('optim_wrapper', config.optim_wrapper, first.optim_wrapper),
        ):
            if ours != theirs:
                raise SystemExit(
                    f'{name} has another {key} than {next(iter(found))}: only recipes for the '
                    'same student, trained in the same way, can be measured against each other'
                )
    return found


def _parsed(setting: str) -> tuple[str, Any]:
    key, _, value = setting.partition('=')
    return key, DictAction._parse_iterable(value)


def read(path: str, settings: Sequence[tuple[str, Any]], args: argparse.Namespace) -> Config:
    """Read a recipe and make it ready to be built without data and without downloads."""
    common = dict(config=path, cfg_options=None, launcher='none', local_rank=0, work_dir=None)
    config = read_config(argparse.Namespace(**common))
    if str(config.model.get('type')).rpartition('.')[2] != 'Distilled':
        raise SystemExit(
            f'{path} distils nothing: expected a model of type kd_dense.Distilled, as the '
            f'recipes in configs/ have, got {config.model.get("type")}'
        )
    for key, value in settings:
        if isinstance(config.model.teacher, str):  # so that its fields can be set
            config.model.teacher = dict(config=config.model.teacher)
        config.merge_from_dict({key: value})
    if isinstance(config.model.teacher, str):
        config.model.teacher = dict(config=config.model.teacher)
    if not args.pretrained:
        config.model.teacher.checkpoint = None
    student = config.model.student
    student.setdefault('data_preprocessor', config.get('data_preprocessor'))
    preprocessor = student.data_preprocessor
    size = tuple(args.size or preprocessor.get('size') or DETECTION_SIZE)
    if preprocessor.get('size'):
        preprocessor.size = size
    preprocessor.pop('batch_augments', None)  # they would change the size
    divisor = preprocessor.get('pad_size_divisor') or preprocessor.get('size_divisor') or 1
    if any(side % divisor for side in size):
        raise SystemExit(
            f'{path} pads pictures to multiples of {divisor}: expected such a --size, '
            f'got {size[0]} {size[1]}'
        )
    config.size = size
    return config


def make_batch(config: Config, model: Any, count: int) -> Batch:
    """Random pictures with boxes (and masks), or label maps of all classes, as a model wants."""
    height, width = config.size
    random = torch.Generator().manual_seed(0)
    meta = dict(
        img_shape=config.size,
        ori_shape=config.size,
        pad_shape=config.size,
        scale_factor=(1.0, 1.0),
        flip=False,
    )
    classes = next(_values_of(config.model.student, 'num_classes'))
    samples: list[Any] = []
    for index in range(count):
        if config.default_scope == 'mmseg':
            from mmseg.structures import SegDataSample

            side = max(min(height, width) // 16, 1)
            blocks = torch.randint(classes, (-(-height // side), -(-width // side)),
                                   generator=random)  # fmt: skip
            labels = blocks.repeat_interleave(side, 0).repeat_interleave(side, 1)
            labels = labels[None, :height, :width].contiguous()
            samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
            continue
        from mmdet.structures import DetDataSample

        limits = torch.tensor([width, height])
        # Sides from a thirtieth to half of the picture's, evenly on a logarithmic scale.
        sides = limits * 0.5 * (1 / 15) ** torch.rand(BOXES, 2, generator=random)
        corners = (limits - sides) * torch.rand(BOXES, 2, generator=random)
        boxes = torch.cat([corners, corners + sides], 1)
        truth = InstanceData(
            bboxes=boxes, labels=torch.randint(classes, (BOXES,), generator=random)
        )
        if any('mask_head' in part for part in dicts_in(config.model.student)):
            truth.masks = _masks(boxes, height, width)
        samples.append(DetDataSample(gt_instances=truth, metainfo={**meta, 'img_id': index}))
    shape = (3, height, width)
    images = [torch.randint(256, shape, dtype=torch.uint8, generator=random) for _ in range(count)]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    return Batch(data['inputs'], data['data_samples'])


def _masks(boxes: Tensor, height: int, width: int) -> Any:
    """The boxes as masks."""
    from mmdet.structures.mask import BitmapMasks

    x, y = torch.arange(width), torch.arange(height)[:, None]
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    masks = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return BitmapMasks(masks.numpy().astype('uint8'), height, width)


def _values_of(value: Any, key: str) -> Iterator[Any]:
    return (part[key] for part in dicts_in(value) if isinstance(part.get(key), int))


class Trained:
    """A model with the optimizer of its config, ready to take steps."""

    def __init__(self, model: Any, config: Config, device: str) -> None:
        self.model = revert_sync_batchnorm(model).to(device)
        self.model.train()
        self.optimizer: Any = build_optim_wrapper(self.model, config.optim_wrapper)
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0
        self.critic = CriticHook()
        self.runner: Any = SimpleNamespace(
            model=self.model,
            optim_wrapper=self.optimizer,
            message_hub=MessageHub.get_current_instance(),
            iter=0,
            max_iters=1,
        )
        self.critic.before_run(self.runner)

    def context(self) -> AbstractContextManager[Any]:
        """What a forward pass runs under: autocast, if the optimizer's wrapper has it."""
        found: AbstractContextManager[Any] = self.optimizer.optim_context(self.model)
        return found

    def step(self, batch: Batch) -> Tensor:
        """What mmengine's training loop does with a batch; returns the loss."""
        self.critic.before_train_iter(self.runner, 0)
        with self.context():
            losses = self.model(*batch, mode='loss')
        total: Tensor = self.model.parse_losses(losses)[0]
        self.optimizer.update_params(total)
        self.critic.after_train_iter(self.runner, 0)
        return total.detach()


def plain_student(config: Config, distilled: Any) -> Any:
    """Build the student without distillation, with the weights of the distilled one."""
    model = MODELS.build(deepcopy(config.model.student))  # building may change a config
    weights = {k: v for k, v in distilled.state_dict().items() if not k.startswith('kd.')}
    model.load_state_dict(weights, strict=True)
    return model


def minimal_forward(model: Any, calls: Mapping[str, int], batch: Batch) -> Taps:
    """Run a teacher up to its last tap, and no further; returns what was recorded."""
    with torch.no_grad(), Taps(calls).on(model, stop_after=calls) as taps:
        forward(model, *batch, features_only=needs_features_only(calls))
    return taps


def largest_layer(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of input and output of the largest module without children that runs."""
    sizes = [0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.append(_bytes([*inputs, output]))

    hooks = [m.register_forward_hook(look) for m in model.modules() if not any(m.children())]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a nested value, each memory once."""
    return sum({x.data_ptr(): x.numel() * x.element_size() for x in _tensors(value)}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _cut(value: Any) -> Any:
    """Cut tensors off the graph that made them; those that had a gradient can have one."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*map(_cut, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_cut, value))
    return value


def loss_alone(trained: Trained, name: str, arguments: Sequence[Any]) -> Callable[[], None]:
    """A term on recorded maps, forward and backward, with the step of a critic it may have."""
    term = trained.model.kd[name]
    leaves = [x for x in _tensors(arguments) if x.requires_grad]
    leaves += [p for p in term.parameters() if p.requires_grad]

    def run() -> None:
        with trained.context():
            losses = term(*arguments)
        torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True)
        for loss in term.losses:
            if isinstance(loss, HolisticLoss):
                loss.critic_backward()
                loss.critic.zero_grad()

    return run


def recorded(trained: Trained, batch: Batch) -> dict[str, tuple[Any, ...]]:
    """Take a step; returns what each term was called with, of those that are not switched off."""
    found: dict[str, tuple[Any, ...]] = {}
    hooks = [
        term.register_forward_pre_hook(
            lambda _, arguments, name=name: found.update({name: _cut(arguments)})
        )
        for name, term in trained.model.kd.items()
    ]
    try:
        total = trained.step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not total.isfinite():
        raise SystemExit('the loss of a step is not finite; what would be timed has no meaning')
    return found


class Benchmark:
    """All that is timed, by name; what several recipes share is there once."""

    def __init__(self, configs: Mapping[str, Config], args: argparse.Namespace) -> None:
        self.args = args
        self.calls: dict[str, Callable[[], Any]] = {}
        self.teachers: dict[str, tuple[str, Any]] = {}  # name and model, by config
        self.distilled: dict[str, Trained] = {}
        self.cases = [self._case(name, config) for name, config in configs.items()]

    def _case(self, name: str, config: Config) -> Case:
        with DefaultScope.overwrite_default_scope(config.default_scope):
            torch.manual_seed(0)  # all students begin with the same weights
            model: Any = MODELS.build(deepcopy(config.model))
            if self.args.pretrained:
                model.init_weights()
            for term in model.kd.values():
                term.schedule = Schedule()
            if PLAIN not in self.calls:
                self.plain = Trained(plain_student(config, model), config, self.args.device)
                self.batch = make_batch(config, self.plain.model, self.args.batch_size)
                self.calls[PLAIN] = lambda: self.plain.step(self.batch)
            trained = self.distilled[name] = Trained(model, config, self.args.device)
            arguments = recorded(trained, self.batch)
            step = f'{name}: distilled step'
            self.calls[step] = lambda: trained.step(self.batch)
            terms = {term: f'{name}: {term}' for term in arguments}
            for term, call in terms.items():
                self.calls[call] = loss_alone(trained, term, arguments[term])
            guest = self._guest(config, model, terms) if terms else None
        return Case(name, step, terms, guest)

    def _guest(self, config: Config, model: Any, terms: Iterable[str]) -> Guest:
        """Time a teacher of its own, without options: up to the taps in use, and as a whole."""
        spec, plan = config.model.teacher, model.kd_plan
        key = str(spec.config)
        if key not in self.teachers:
            built = Teacher({k: spec[k] for k in ('config', 'checkpoint', 'strict') if k in spec})
            built.load()
            name = Path(built.name).stem
            if name in (other for other, _ in self.teachers.values()):
                name = f'{name} ({len(self.teachers) + 1})'
            self.teachers[key] = name, built.model.to(self.args.device)
        name, teacher = self.teachers[key]
        batch = Batch(plan.preprocess(*self.batch), self.batch.samples)
        taps = chain(*(model.kd[term].teacher_taps for term in terms))
        calls = {tap: plan.teacher_calls[tap] for tap in taps}
        minimal, full = f'{name} up to {", ".join(sorted(calls))}', f'{name} with its task loss'

        def run() -> Taps:
            with self.plain.context():
                return minimal_forward(teacher, calls, batch)

        def run_all() -> None:
            with torch.no_grad(), self.plain.context():
                teacher.loss(*batch)

        self.calls[minimal], self.calls[full] = run, run_all
        found = run()
        maps = _bytes([found[tap] for tap in calls])
        return Guest(minimal, full, maps, largest_layer(teacher, run))

    def run(self) -> dict[str, Any]:
        """Time everything, then measure its memory; all figures by name."""
        rounds = self.args.rounds
        console = Console(stderr=True)
        bars = Progress(
            TextColumn('{task.description}'),
            BarColumn(24),
            TextColumn('{task.completed:.0f}/{task.total:.0f}'),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,  # drawing would take time from what is timed
        )

        def show(done: int, total: int, what: str = 'rounds') -> None:
            bars.update(bar, completed=done, total=total, description=what)
            bars.refresh()
            if not console.is_terminal:
                console.print(f'{what}: {done} of {total}')

        gc.collect()
        gc.disable()
        try:
            with bars:
                bar = bars.add_task('rounds', total=rounds + 1)
                bars.refresh()
                seconds = time_interleaved(
                    self.calls, rounds, device=self.args.device, progress=show
                )
                memory = {}
                for index, (name, call) in enumerate(self.calls.items()):
                    memory[name] = peak_memory(call, self.args.device)
                    show(index + 1, len(self.calls), 'memory')
        finally:
            gc.enable()
        return {
            'calls': {
                name: dict(seconds=seconds[name], **_figures(spread(seconds[name])),
                           peak_bytes=memory[name])
                for name in self.calls
            },
            'recipes': {
                case.name: self._summary(case, seconds, memory) for case in self.cases
            },
        }  # fmt: skip

    def _summary(
        self, case: Case, seconds: Mapping[str, list[float]], memory: Mapping[str, int]
    ) -> dict[str, Any]:
        """A recipe against its floor; ratios are those of one round each."""
        step, floor, held = seconds[case.step], seconds[PLAIN], memory[PLAIN]
        others = floor
        if case.guest is not None:
            floor = _sums(floor, seconds[case.guest.minimal])
            others = _sums(others, seconds[case.guest.full])
            held += case.guest.maps + case.guest.layer
        losses = _sums([0.0] * len(step), *(seconds[call] for call in case.terms.values()))
        time, peak = ratio(step, floor), memory[case.step] / held
        return {
            **case._asdict(),
            'guest': case.guest and case.guest._asdict(),
            'floor_seconds': floor,
            'floor_bytes': held,
            'step_to_floor': _figures(time),
            'losses_to_step': _figures(ratio(losses, step)),
            'whole_teacher_to_floor': _figures(ratio(others, floor)),
            'step_to_first': _figures(ratio(step, seconds[self.cases[0].step])),
            'peak_to_floor': peak,
            'goals': {'time': time.median <= GOAL, 'memory': peak <= GOAL},
        }


def _sums(*figures: Sequence[float]) -> list[float]:
    return [sum(row) for row in zip(*figures, strict=True)]


def _figures(found: Spread) -> dict[str, float]:
    return found._asdict()


def surroundings(args: argparse.Namespace, batch: Batch) -> dict[str, Any]:
    """What the figures depend on."""
    git = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    on_gpu = args.device == 'cuda'
    return {
        'size': list(batch.inputs.shape[-2:]),
        'batch_size': len(batch.inputs),
        'rounds': args.rounds,
        'pretrained': args.pretrained,
        'device': torch.cuda.get_device_name() if on_gpu else 'cpu',
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'commit': git.stdout.strip() or None,
    }


def report(results: Mapping[str, Any]) -> None:
    """Print all figures as a table, and each recipe against its floor."""
    console = Console(width=120)
    calls, recipes = results['calls'], results['recipes']
    table = Table(
        title='{size[0]}x{size[1]}, batch of {batch_size}, {rounds} rounds, {device}, '
        '{threads} threads'.format_map(results)
    )
    table.add_column('')
    for title in ('seconds', '(quartiles)', 'peak MB'):
        table.add_column(title, justify='right')

    def add(name: str, title: str) -> None:
        found = calls[name]
        table.add_row(
            title,
            f'{found["median"]:.3f}',
            f'{found["low"]:.3f}-{found["high"]:.3f}',
            f'{found["peak_bytes"] / 1e6:.0f}',
        )

    own = {
        call for found in recipes.values() for call in (found['step'], *found['terms'].values())
    }
    for name in calls:
        if name not in own:
            add(name, name)
    for number, found in enumerate(recipes.values(), 1):
        table.add_section()
        add(found['step'], f'[{number}] distilled step')
        for term, call in found['terms'].items():
            add(call, f'[{number}] {term}, alone')
    console.print(table, markup=False)
    for number, (name, found) in enumerate(recipes.items(), 1):
        lines = [
            f'[{number}] {name}',
            f'time {_written(found["step_to_floor"])} x floor, goal {GOAL} '
            f'{_verdict(found["goals"]["time"])}; with the whole teacher in place of its first '
            f'layers the floor would be {_written(found["whole_teacher_to_floor"])}',
            f'memory {found["peak_to_floor"]:.3f} x floor of {found["floor_bytes"] / 1e6:.0f} MB, '
            f'goal {GOAL} {_verdict(found["goals"]["memory"])}',
            f'losses {100 * found["losses_to_step"]["median"]:.1f} % of the step',
        ]
        if number > 1:
            lines.append(f'step {_written(found["step_to_first"])} x that of [1]')
        console.print('\n    '.join(lines), markup=False, highlight=False)


def _written(found: Mapping[str, float]) -> str:
    return '{median:.3f} ({low:.3f}-{high:.3f})'.format_map(found)


def _verdict(good: bool) -> str:
    return 'met' if good else 'MISSED'


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    MMLogger.get_instance('benchmark', log_level='ERROR')
    benchmark = Benchmark(named_configs(args), args)
    results = {**surroundings(args, benchmark.batch), **benchmark.run()}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1))
    report(results)


if __name__ == '__main__':
    main()
