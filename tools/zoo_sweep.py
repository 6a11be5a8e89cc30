"""Try every method on every family of models that mmdet and mmseg come with.

A family is a folder of configs, or the configs of one of our heads with box distributions. Its
model with the fewest parameters is the student (of detectors, one with a feature pyramid if there
is any), the largest model of the same kind is the teacher; both are untrained. A method works on a
family if, on a tiny input, all losses are finite, a gradient flows from the method's own terms
into the student, a step of the optimizer and then a prediction run, and the teacher is bit for bit
what it was. Training without a method ('plain') comes first, so that a model that does not train
anyway is told from one that cannot be distilled; the student is then the next larger one.

Each trial runs in a process of its own. Its result is a line of the output file; what the file
has already is not tried again. The exit status is 0 if every method works wherever the student
trains at all and the method applies.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmengine.utils import get_installed_path
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import kd_dense.mm  # noqa: F401  (before any config is read)
from kd_dense.mm.made_up import BRANCHES, FRAMES, IMAGES, metainfo
from kd_dense.taps import TapError, Taps, near_names
from train import dicts_in

ROOT = Path(__file__).resolve().parents[1]
OURS = ('atss-distribution', 'fcos-distribution', 'retinanet-distribution')  # in configs/ld
PLAIN = 'plain'
METHODS = ('cwd', 'fgd', 'skd', 'intrakd', 'ld')
NO_MODEL = 'no config with a model'
APPLY = {
    'mmdet': (PLAIN, 'cwd', 'fgd', 'ld'),
    'mmseg': (PLAIN, 'cwd', 'skd', 'intrakd'),
    'kd_dense': (PLAIN, 'cwd', 'fgd', 'ld'),
}
STUDENTS = 3  # models of a family that are tried at most until one trains

# Heights and widths that are tried, smallest first; then those that the config names.
SIZES = ((128, 128), (256, 256), (320, 320), (512, 512))
SEGMENTER_SIZES = ((64, 64), *SIZES)
LANE = 72  # heights at which a lane is given

# What a model is built without: downloads, packages for evaluation, padding to another size.
LEFT_OUT = dict(
    pretrained=None,
    teacher_ckpt=None,
    batch_augments=None,
    use_torchvision=False,
    templates=['{}'],  # sentences with the name of a class: one in place of dozens
)
# How many boxes a detector proposes, samples and keeps at most: the time goes there.
BOXES = 32
BOX_LIMITS = ('nms_pre', 'max_per_img', 'num')


class Data(NamedTuple):
    """Which labels a model is trained with, and in which layout its batches come."""

    segments: bool  # a segmenter of mmseg
    classes: int
    masks: bool
    label_maps: bool
    proposals: bool
    edges: bool
    lanes: bool
    videos: bool  # in training
    videos_in_test: bool
    branches: bool  # in training


class Trial(NamedTuple):
    """What is tried in a process of its own."""

    family: str
    method: str
    files: Sequence[Path]
    plain: Mapping[str, Any]  # the record of training without a method; empty before that


# Families ----------------------------------------------------------------------------------------


def families() -> dict[str, list[Path]]:
    """The config files of each family, by its name: ``'mmdet/retinanet'``."""
    found = {}
    for package in ('mmdet', 'mmseg'):
        home = Path(get_installed_path(package)) / '.mim' / 'configs'
        for folder in sorted(home.iterdir()):
            files = sorted(folder.glob('*.py'))
            if files and not folder.name.startswith('_'):
                found[f'{package}/{folder.name}'] = files
    for name in OURS:
        found[f'kd_dense/{name}'] = sorted((ROOT / 'configs' / 'ld').glob(f'{name}_*.py'))
    return found


@cache
def read(path: Path) -> Config | None:
    """Read a config; None if nothing is trained with it, or it needs what is not installed."""
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except Exception:  # a config may run any code
        return None
    trains = 'train_dataloader' in config or 'train_pipeline' in config
    return config if trains and isinstance(config.get('model'), Mapping) else None


def choose(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Choose the smallest models of a family that differ, and for each its teacher.

    Those with a feature pyramid come first: more methods apply to them.

    Raises:
        ValueError: If no file has a model that can be built.
    """
    sizes, problems = {}, []
    for path in files:
        config = read(path)
        if config is None:
            continue
        try:
            sizes[path] = parameters(config)
        except Exception as error:  # whatever a model raises that cannot be built
            problems.append(described(error))
    if not sizes:
        raise ValueError(problems[0] if problems else NO_MODEL)
    students: list[Path] = []
    order = {path: (not has_pyramid(read(path)), sizes[path], len(path.name)) for path in sizes}
    for path in sorted(sizes, key=lambda path: (order[path], path)):
        if all(model_of(path) != model_of(other) for other in students):
            students.append(path)
    pairs = []
    for student in students[:STUDENTS]:
        alike = [path for path in sizes if kind(read(path)) == kind(read(student))]
        teacher = max(alike, key=lambda path: (sizes[path], -len(path.name), path))
        pairs.append((student, teacher))
    return pairs


def has_pyramid(config: Any) -> bool:
    """Whether this is a detector with a neck whose maps are all of one width."""
    if 'decode_head' in config.model:
        return False
    necks = [one['neck'] for one in dicts_in(config.model) if one.get('neck')]
    last = [neck[-1] if isinstance(neck, Sequence) else neck for neck in necks]
    return any(isinstance(neck.get('out_channels'), int) for neck in last)


def model_of(path: Path) -> Any:
    config = read(path)
    return config and config.model


def kind(config: Any) -> list[str]:
    """What a student and its teacher must have in common: classes of model and parts, labels."""
    model = config.model
    names = [name for name in model if name == 'neck' or name.endswith('_head')]
    parts = [f'{n}: {model[n].type}' for n in names if isinstance(model[n], Mapping)]
    keys = ('num_classes', 'num_things_classes', 'img_size', 'input_size', 'reg_max')
    values = {f'{k}: {v}' for one in dicts_in(model) for k, v in one.items() if k in keys}
    return [str(model.type), *sorted(parts), *sorted(values)]


class NoMemory(TorchFunctionMode):
    """Parameters without memory, so that a model is built in no time."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs['device'] = 'meta'
        return function(*args, **kwargs)


def parameters(config: Config) -> int:
    """How many parameters a model has."""
    try:
        with NoMemory():
            model = build(prepared(config))
    except (RuntimeError, ValueError):  # it computes with its parameters when it is built
        model = build(prepared(config))
    return sum(parameter.numel() for parameter in model.parameters())


# Models ------------------------------------------------------------------------------------------


def prepared(config: Config, size: tuple[int, int] | None = None) -> Config:
    """A config whose model needs no download and no GPU, and takes images of a size."""
    config = copy.deepcopy(config)
    model = config.model
    if 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    for one in dicts_in(model):
        one.update({name: LEFT_OUT[name] for name in LEFT_OUT.keys() & one.keys()})
        one.update({k: min(one[k], BOXES) for k in BOX_LIMITS if isinstance(one.get(k), int)})
        if one.get('type') == 'CLIPTextEncoder':  # it is frozen, and slow: each class is a text
            one['num_layers'] = 1
        if 'checkpoint' in (one.get('init_cfg') or {}):
            one['init_cfg'] = None
        if one.get('type') in ('SyncBN', 'MMSyncBN'):
            one['type'] = 'BN'
        if isinstance(one.get('teacher_config'), str):  # relative to the repository of mmdet
            one['teacher_config'] = get_installed_path('mmdet') + '/.mim/' + one['teacher_config']
        if size is not None and 'img_size' in one:
            one['img_size'] = size[0] if isinstance(one['img_size'], int) else size
        if size is not None and one.get('type') == 'SegDataPreProcessor':
            one['size'] = size
            one.pop('size_divisor', None)
    if 'tracker' in model and not builds(model.tracker):
        model.tracker = None  # it takes no part in training
    return config


def builds(part: Mapping[str, Any]) -> bool:
    try:
        build(Config(dict(model=part, default_scope='mmdet')))
    except Exception:  # it may need packages of its own
        return False
    return True


def build(config: Config) -> Any:
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return MODELS.build(config.model)


def own_sizes(config: Config) -> list[tuple[int, int]]:
    """Sizes that a config names: some models run at no other."""
    found = []
    for one in dicts_in(config.to_dict()):
        found += [one.get(name) for name in ('crop_size', 'img_size', 'input_size')]
        found.append((one.get('img_height'), one.get('img_width')))
    pairs = [(x, x) if isinstance(x, int) else tuple(x or ())[:2] for x in found]
    return [x for x in pairs if len(x) == 2 and all(isinstance(side, int) for side in x)]


# Data --------------------------------------------------------------------------------------------


def data_of(config: Config, segments: bool) -> Data:
    """Read off a config which labels its pipeline loads."""
    pipelines = [config.get('train_dataloader'), config.get('train_pipeline')]
    steps = {str(one['type']): one for one in dicts_in(pipelines) if 'type' in one}
    loads = [step for name, step in steps.items() if 'Annotations' in name]
    panoptic, lanes = 'LoadPanopticAnnotations' in steps, 'PackLineDetectionInputs' in steps
    classes = [one['num_classes'] for one in dicts_in(config.model) if 'num_classes' in one]
    preprocessors = [str(one.get('type')) for one in dicts_in(config.model)]
    return Data(
        segments=segments,
        classes=min((x for x in classes if isinstance(x, int)), default=1),
        masks=panoptic or any(step.get('with_mask') for step in loads),
        label_maps=segments or panoptic or lanes or any(step.get('with_seg') for step in loads),
        proposals='LoadProposals' in steps,
        edges='GenerateEdge' in steps,
        lanes=lanes,
        videos='PackTrackInputs' in steps,
        videos_in_test='TrackDataPreprocessor' in preprocessors,
        branches='MultiBranchDataPreprocessor' in preprocessors,
    )


def make_batch(data: Data, size: tuple[int, int], training: bool) -> Any:
    """Noisy images with labels, as a data loader gives them."""
    rng = torch.Generator().manual_seed(0)
    if data.branches and training:
        images = [{b: _image(data, size, rng) for b in BRANCHES} for _ in range(IMAGES)]
        keys = 'inputs', 'data_samples'
        return pseudo_collate([{k: {b: x[k] for b, x in i.items()} for k in keys} for i in images])
    if data.videos if training else data.videos_in_test:
        return pseudo_collate([_video(data, size, rng) for _ in range(IMAGES if training else 1)])
    return pseudo_collate([_image(data, size, rng) for _ in range(IMAGES)])


def _video(data: Data, size: tuple[int, int], rng: torch.Generator) -> dict[str, Any]:
    from mmdet.structures import TrackDataSample

    frames = [_image(data, size, rng) for _ in range(FRAMES)]
    for index, frame in enumerate(frames):
        frame['data_samples'].set_metainfo(dict(frame_id=index))
    sample = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
    sample.video_data_samples = [frame['data_samples'] for frame in frames]
    return dict(inputs=torch.stack([frame['inputs'] for frame in frames]), data_samples=sample)


def _image(data: Data, size: tuple[int, int], rng: torch.Generator) -> dict[str, Any]:
    height, width = size
    about = metainfo(size) | dict(img_id=0, img_path='', flip_direction=None)
    sample: Any
    if data.segments:
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=about)
    else:
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo=about)
        _add_objects(sample, data, size)
    labels = torch.randint(0, data.classes, (1, height, width), generator=rng)
    labels[:, : height // 2] = 0  # regions beside noise
    labels[:, :, : width // 2] = data.classes - 1
    if data.label_maps:
        sample.gt_sem_seg = PixelData(**{'data' if data.segments else 'sem_seg': labels})
    if data.edges:
        sample.gt_edge_map = PixelData(data=(labels != labels.roll(1, -1)).long())
    image = torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)
    return dict(inputs=image, data_samples=sample)


def _add_objects(sample: Any, data: Data, size: tuple[int, int]) -> None:
    height, width = size
    corners = torch.tensor([[0.1, 0.15, 0.6, 0.7], [0.3, 0.4, 0.95, 0.9]])
    boxes = corners * torch.tensor([width, height, width, height])
    things = InstanceData(bboxes=boxes, labels=torch.tensor([0, data.classes - 1]))
    if data.videos:
        things.instances_ids = torch.tensor([100, 101])
    if data.masks:
        from mmdet.structures.mask import BitmapMasks

        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        things.masks = BitmapMasks(masks.numpy(), height, width)
    sample.gt_instances = things
    sample.ignored_instances = things[:0]
    if data.proposals:
        sample.proposals = InstanceData(bboxes=boxes + 2, scores=torch.tensor([0.9, 0.8]))
    if data.lanes:  # one row a lane: no or yes, start (y, x), angle, length, x at each height
        rows = torch.full((4, 6 + LANE), -1e5)
        rows[:, :6] = torch.tensor([1, 0, 0, 0, 0, 0])
        rows[0, :6] = torch.tensor([0, 1, 0, 0.3, 0.4, LANE])
        rows[0, 6:] = torch.linspace(0.3 * width, 0.6 * width, LANE)
        sample.lines_array = rows.numpy()
        sample.org_width, sample.org_height = width, height


# Trials ------------------------------------------------------------------------------------------


def attempt(trial: Trial) -> dict[str, Any]:
    """Do what a trial says.

    Raises:
        Exception: Whatever goes wrong with it.
    """
    package = trial.family.partition('/')[0]
    if trial.method == PLAIN:
        return train_plain(package == 'mmseg', choose(trial.files))
    paths = {path.name: path for path in trial.files}
    student, teacher = (read(paths[trial.plain[key]]) for key in ('student', 'teacher'))
    assert student is not None
    assert teacher is not None
    height, width = trial.plain['size']
    config, other = (prepared(one, (height, width)) for one in (student, teacher))
    guest = build(other)
    initialise(guest)  # without it some overflow
    config.model = ConfigDict(
        type='kd_dense.Distilled',
        student=config.model,
        teacher=guest,
        preset=trial.method,
        checks=False,  # they would run the untrained teacher once more, and complain
    )
    model, data = build(config), data_of(student, package == 'mmseg')
    train_step(model, data, (height, width))
    if trial.plain['predicts']:
        predict(model, data, (height, width))
    return dict(taps={name: term.student_tap for name, term in model.kd.items()})


def train_plain(segments: bool, pairs: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
    """Train the first student that trains without a method."""
    failed: list[dict[str, Any]] = []
    for student, teacher in pairs:
        record = train_student(segments, student, teacher)
        if record.get('ok', True):
            return record | dict(passed_over={r['student']: r['reason'] for r in failed})
        failed.append(record)
    return failed[0]


def train_student(segments: bool, student: Path, teacher: Path) -> dict[str, Any]:
    """Train a student without a method, at the smallest size that it takes."""
    config = read(student)
    assert config is not None
    data = data_of(config, segments)
    record: dict[str, Any] = dict(student=student.name, teacher=teacher.name)
    problem = ''
    for size in dict.fromkeys([*(SEGMENTER_SIZES if segments else SIZES), *own_sizes(config)]):
        try:
            model = build(prepared(config, size))
            taps = Taps([*necks(model), *logits(model)])
            with taps.on(model):
                train_step(model, data, size)
        except Exception as error:  # any layer may refuse a size
            problem = described(error)
            continue
        record |= dict(size=size, applies=applicable(model, taps), predicts=True)
        try:
            predict(model, data, size)
        except Exception as error:  # as that of a tracker without its package
            record |= dict(predicts=False, note='prediction: ' + described(error))
        return record
    return record | dict(ok=False, reason=problem)


def necks(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.rpartition('.')[2] == 'neck']


def logits(model: nn.Module) -> list[str]:
    """Where a segmenter may yield a map with a channel for each class."""
    names = [name for name, _ in model.named_modules()]
    heads = [name for name in names if name.rpartition('.')[2] in ('conv_seg', 'cls_seg')]
    return [name for name in ('decode_head', *heads) if name in names and 'auxiliary' not in name]


def applicable(model: nn.Module, taps: Taps) -> list[str]:
    """The methods that a model has what they need for."""
    found = ['cwd']
    widths = [[x.shape[1] for x in _maps(taps, name)] for name in necks(model)]
    if any(len(one) > 1 and len({*one}) == 1 for one in widths) and not logits(model):
        found.append('fgd')
    classes = {m.out_channels for m in model.modules() if hasattr(m, 'conv_seg')}
    if any(x.shape[1] in classes for name in logits(model) for x in _maps(taps, name)):
        found += ['skd', 'intrakd']
    if any(isinstance(getattr(m, 'reg_max', None), int) for m in model.modules()):
        found.append('ld')
    return found


def _maps(taps: Taps, name: str) -> list[Tensor]:
    try:
        return [x for x in taps[name] if x.dim() == 4]
    except TapError:
        return []


def train_step(model: Any, data: Data, size: tuple[int, int]) -> None:
    """Train for one step, and check what a method promises.

    Raises:
        ValueError: If a loss or a gradient is not finite, no gradient flows, or the teacher has
            changed.
        Exception: Whatever the model raises.
    """
    hub = MessageHub.get_current_instance()  # some losses ask it
    hub.update_info_dict(dict(iter=0, epoch=0, max_iters=10, max_epochs=10))
    initialise(model)
    model.train()
    teacher = model.kd_plan.teacher.model if hasattr(model, 'kd') else nn.Identity()
    before = copy.deepcopy(teacher.state_dict())

    losses = model(**model.data_preprocessor(make_batch(data, size, True), True), mode='loss')
    total, logged = model.parse_losses(losses)
    infinite = [k for k, value in logged.items() if not torch.as_tensor(value).isfinite().all()]
    if infinite:
        raise ValueError(f'not finite: {", ".join(infinite)}')
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if hasattr(model, 'kd'):
        ours = sum(value for name, value in losses.items() if name.startswith('loss_kd_'))
        own = [p for name, p in parameters.items() if not name.startswith('kd.')]
        gradients = torch.autograd.grad(ours, own, retain_graph=True, allow_unused=True)
        _check_gradients('from the terms into the student', gradients)
    total.backward()
    _check_gradients('into the student', [p.grad for p in parameters.values()])
    torch.optim.SGD(parameters.values(), lr=1e-4).step()
    changed = [k for k, x in teacher.state_dict().items() if not torch.equal(x, before[k])]
    if changed:
        raise ValueError(f'the teacher has changed: {", ".join(changed)}')


def initialise(model: Any) -> None:
    """Give a model its first weights."""
    try:
        model.init_weights()
    except AttributeError:  # SAN's, which can begin with those of CLIP alone
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)


def _check_gradients(where: str, gradients: Sequence[Tensor | None]) -> None:
    received = [gradient for gradient in gradients if gradient is not None]
    if not any(gradient.any() for gradient in received):
        raise ValueError(f'no gradient flows {where}')
    if not all(gradient.isfinite().all() for gradient in received):
        raise ValueError(f'the gradient {where} is not finite')


@torch.no_grad()
def predict(model: Any, data: Data, size: tuple[int, int]) -> None:
    model.eval()
    model(**model.data_preprocessor(make_batch(data, size, False), False), mode='predict')


def described(error: BaseException) -> str:
    """An error in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:400]}'


# The sweep ---------------------------------------------------------------------------------------


def run(trial: Trial, limit: float) -> dict[str, Any]:
    """Run a trial in a forked process: a crash or a hang is its result, and memory comes back."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(trial, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    record: dict[str, Any]
    if receiver.poll(limit):
        try:
            record = receiver.recv()
        except EOFError:
            process.join()
            reason = f'the process ended with exit status {process.exitcode}'
            record = dict(ok=False, reason=reason)
    else:
        record = dict(ok=False, reason=f'not finished after {limit:.0f} s')
    process.kill()  # also one that has its result and does not end
    process.join()
    head = dict(family=trial.family, method=trial.method, operators=has_operators())
    return head | record | dict(seconds=round(time.monotonic() - start, 1))


def has_operators() -> bool:
    """Whether mmcv has its compiled operators."""
    return getattr(sys.modules.get('mmcv._ext'), '__file__', None) is not None


def _child(trial: Trial, sender: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter('ignore')
    MMLogger.get_instance('zoo', log_level='ERROR')
    try:
        record = dict(ok=True) | attempt(trial)
    except Exception as error:  # the result of the trial
        where = ''.join(traceback.format_exception(error)).splitlines()[-12:]
        record = dict(ok=False, reason=described(error), trace=where)
    sender.send(record)


def sweep(
    chosen: Mapping[str, Sequence[Path]],
    methods: Sequence[str],
    output: Path,
    limit: float,
    retry: bool = False,
) -> Iterator[dict[str, Any]]:
    """Try what the output file lacks, add it there, and yield all records of these families."""
    known = {(r['family'], r['method']): r for r in load(output)}

    def result(family: str, method: str, plain: Mapping[str, Any]) -> dict[str, Any]:
        old = known.get((family, method))
        if old is not None and (old['ok'] or not retry):
            return old
        new = run(Trial(family, method, chosen[family], plain), limit)
        with output.open('a') as file:
            file.write(json.dumps(new) + '\n')
        return new

    for family in chosen:
        plain = result(family, PLAIN, {})
        yield plain
        for method in methods:
            if method in plain.get('applies', ()):
                yield result(family, method, plain)


def load(path: Path) -> list[dict[str, Any]]:
    """The records of an output file; of a trial that was repeated, the last."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(r['family'], r['method']): r for r in records}.values())


# The page ----------------------------------------------------------------------------------------

PAGE = """# Which models of the zoos can be distilled

Every family of models that mmdet and mmseg come with, and every method that applies to it: one
step of training on a tiny input, with `preset='METHOD'` and nothing else. Measured by

```bash
python tools/zoo_sweep.py --output zoo.jsonl  # hours on two CPU cores; goes on where it stopped
python tools/zoo_sweep.py --table docs/zoo.md --results zoo.jsonl other.jsonl
```

at commit {commit}, in an environment with mmcv's compiled operators and in one without them, where
kd_dense runs NMS, soft-NMS, RoIAlign and deformable convolutions in PyTorch.
`python tools/zoo_sweep.py mmdet/retinanet` tries one family.

- A **family** is a folder of configs, or one of our heads with box distributions. The **student**
  is its model with the fewest parameters, of detectors with a feature pyramid if there are any;
  where it does not train without a method, the next one, at most the third. The **teacher** is its
  largest model of the same kind: of the same class, with heads of the same classes, and for the
  same classes of objects. Where there is no larger one, a second copy of the student teaches.
- Both are **untrained**. This says that a method runs on a model, not what it gains there.
- A method **works** if all losses are finite, a gradient flows from its own terms into the
  student, a step of the optimizer and a prediction after it run, and the teacher is bit for bit
  what it was. Some models do not predict here without a method either (trackers, whose packages
  are missing); there the prediction is left out.
- CWD applies to all models; FGD to detectors whose neck yields two or more maps of one width; SKD
  and IntRA-KD to segmenters that yield a map of logits for each class; LD to heads with box
  distributions.
- To save time, detectors propose, sample and keep at most {boxes} boxes, images have the first
  size from {smallest} pixels up that the model takes, and SAN's frozen text encoder has one layer
  and reads the name of each class once, not in many sentences.

## Counts

{counts}

## Families

`yes`: works in both environments, `ops`: with compiled operators alone, `ops?`: with them, and
not tried without, `no`: in neither, `?`: not tried with them; empty: does not apply.

{families}

## Reasons

A reason that begins with the name of a config says why the student is a larger one.

{reasons}
"""


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The results as a page of the documentation."""
    found = {(r['family'], r['method'], r['operators']): r for r in records}
    empty = {r['family'] for r in records if NO_MODEL in r.get('reason', '')}
    names = sorted({r['family'] for r in records} - empty)
    return PAGE.format(
        commit=_commit(),
        boxes=BOXES,
        smallest=SEGMENTER_SIZES[0][0],
        counts=_counts(names, found),
        families=_families(names, found),
        reasons=_reasons(names, found),
    )


def _commit() -> str:
    """Of this checkout, where it is one."""
    command = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or 'unknown'


def _counts(names: Sequence[str], found: Mapping[Any, Mapping[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    for package, methods in APPLY.items():
        mine = [name for name in names if name.startswith(package + '/')]
        for method in methods:
            cells = []
            for operators in (True, False):
                plain = [found.get((name, PLAIN, operators), {}) for name in mine]
                known = sum(bool(one) for one in plain)
                if method != PLAIN:
                    known = sum(method in one.get('applies', ()) for one in plain)
                tried = [r for n in mine if (r := found.get((n, method, operators)))]
                good = sum(one['ok'] for one in tried)
                cells.append(f'{good} of {known}' if tried else 'not tried')
            what = 'train without a method' if method == PLAIN else method
            rows.append((package, what, *cells))
    return _table(('package', '', 'with compiled operators', 'without'), rows)


def _families(names: Sequence[str], found: Mapping[Any, Mapping[str, Any]]) -> str:
    tables = []
    for package, methods in APPLY.items():
        rows = []
        for name in names:
            folder, _, family = name.partition('/')
            if folder != package:
                continue
            plain = [found.get((name, PLAIN, operators), {}) for operators in (True, False)]
            best = max(plain, key=lambda one: len(one))
            models = [best.get(key, '').removesuffix('.py') for key in ('student', 'teacher')]
            cells = [
                _cell(name, method, found)
                if method == PLAIN or any(method in one.get('applies', ()) for one in plain)
                else ''
                for method in methods
            ]
            rows.append((family, *models, 'x'.join(map(str, best.get('size', ()))), *cells))
        head = ('family', 'student', 'teacher', 'input', *methods)
        tables.append(f'### {package}\n\n{_table(head, rows)}')
    return '\n\n'.join(tables)


def _cell(name: str, method: str, found: Mapping[Any, Mapping[str, Any]]) -> str:
    with_ops, without = (found.get((name, method, operators)) for operators in (True, False))
    if with_ops is None:
        return '?'
    if not with_ops['ok']:
        return 'no'
    if without is None:
        return 'ops?' if _trains(name, False, found) else 'ops'
    return 'yes' if without['ok'] else 'ops'


def _trains(name: str, operators: bool, found: Mapping[Any, Mapping[str, Any]]) -> bool:
    return bool(found.get((name, PLAIN, operators), {'ok': True})['ok'])


def _reasons(names: Sequence[str], found: Mapping[Any, Mapping[str, Any]]) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (name, method, operators), record in found.items():
        if name not in names:
            continue
        passed_over = record.get('passed_over', {}).items()
        reasons = [f'{config.removesuffix(".py")}: {reason}' for config, reason in passed_over]
        for reason in reasons if record['ok'] else [record['reason']]:
            rows.setdefault((name, method, reason), []).append('with' if operators else 'without')
    order = sorted(rows, key=lambda key: (names.index(key[0]), (PLAIN, *METHODS).index(key[1])))
    lines = [(name, method, ', '.join(rows[name, method, reason]), _short(reason))
             for name, method, reason in order]  # fmt: skip
    return _table(('family', '', 'compiled operators', 'reason'), lines) if lines else 'No misses.'


def _short(reason: str) -> str:
    text = reason if len(reason) < 200 else reason[:200] + ' ...'
    return '`' + text.replace('|', '/').replace('`', "'") + '`'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'families', nargs='*', metavar='FAMILY', help="as 'mmdet/retinanet' (default: all)"
    )
    parser.add_argument(
        '--methods',
        nargs='*',
        choices=METHODS,
        default=METHODS,
        metavar='METHOD',
        help=f'of {", ".join(METHODS)} (default: all; none: plain training alone)',
    )
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('work_dirs/zoo.jsonl'),
        help='where results go, one JSON object a line (default: work_dirs/zoo.jsonl)',
    )
    parser.add_argument('--retry', action='store_true', help='try again what did not work')
    parser.add_argument(
        '--limit', type=float, default=300, help='seconds that a trial may take (default: 300)'
    )
    parser.add_argument(
        '--table', type=Path, metavar='FILE', help='try nothing; write the page with the results'
    )
    parser.add_argument(
        '--results', type=Path, nargs='+', help='output files that the page is made of'
    )
    args = parser.parse_args()
    if args.table is not None and not args.results:
        parser.error('--table needs --results FILE.jsonl ...')
    for path in args.results or ():
        if not path.exists():
            parser.error(f'{path} does not exist')
    return args


def main() -> int:
    args = parse_args()
    if args.table is not None:
        records = [record for path in args.results for record in load(path)]
        args.table.write_text(page(records))
        return 0
    import mmdet.utils
    import mmseg.utils

    for package in (mmdet, mmseg):  # here, so that no forked process imports them again
        package.utils.register_all_modules(init_default_scope=False)
    known = families()
    for name in args.families:
        if name not in known:
            raise SystemExit(f'there is no family {name!r}: {near_names(name, known)}')
    chosen = {name: known[name] for name in args.families or known}
    args.output.parent.mkdir(parents=True, exist_ok=True)

    records = []
    for record in sweep(chosen, args.methods, args.output, args.limit, args.retry):
        records.append(record)
        place = [*chosen].index(record['family']) + 1
        what = 'ok' if record['ok'] else 'no: ' + record['reason']
        print(f'[{place}/{len(chosen)}] {record["family"]} {record["method"]}: {what}', flush=True)
    trained = [record for record in records if record['method'] != PLAIN]
    plain = [record for record in records if record['method'] == PLAIN]
    print(
        f'{sum(r["ok"] for r in plain)} of {len(plain)} families train; '
        f'{sum(r["ok"] for r in trained)} of {len(trained)} methods work on them'
    )
    return 0 if all(record['ok'] for record in trained) else 1


if __name__ == '__main__':
    sys.exit(main())
