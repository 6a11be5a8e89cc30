"""A trial: a method on a family of models, or training without one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from torch import Tensor, nn

from benchmarks.zoo.data import Data, data_of, make_batch
from benchmarks.zoo.families import choose, read
from benchmarks.zoo.models import SEGMENTER_SIZES, SIZES, build, own_sizes, prepared
from benchmarks.zoo.records import described
from kd_dense.mm.batches import head_boxes, head_targets
from kd_dense.mm.batches.targets import NEEDS
from kd_dense.mm.distil.first_steps import split_losses
from kd_dense.mm.models.box_heads import check_box_heads
from kd_dense.mm.models.towers import find_tower
from kd_dense.mm.presets.choose import METHODS
from kd_dense.mm.presets.roles import Side
from kd_dense.taps import TapError, Taps


class Trial(NamedTuple):
    """What is tried in a process of its own."""

    family: str
    methods: Sequence[str]  # none, or several together
    files: Sequence[Path]
    plain: Mapping[str, Any]  # the record of training without a method; empty before that
    steps: int = 1  # of training with methods


def attempt(trial: Trial) -> dict[str, Any]:
    """Do what a trial says.

    Raises:
        Exception: Whatever goes wrong with it.
    """
    package = trial.family.partition('/')[0]
    if not trial.methods:
        return train_plain(package == 'mmseg', choose(trial.files))
    paths = {path.name: path for path in trial.files}
    student, teacher = (read(paths[trial.plain[key]]) for key in ('student', 'teacher'))
    assert student is not None
    assert teacher is not None
    height, width = trial.plain['size']
    config, other = (prepared(one, (height, width)) for one in (student, teacher))
    guest = None
    if not alone(trial.methods):
        guest = build(other)
        initialise(guest)  # without it some overflow
    config.model = ConfigDict(
        type='kd_dense.Distilled',
        student=config.model,
        teacher=guest,
        preset=[*trial.methods],
        checks=False,  # they would run the untrained teacher once more, and complain
    )
    model, data = build(config), data_of(student, package == 'mmseg')
    least = max(term.loss.least_images for term in model.kd.values())
    data = data._replace(images=max(data.images, least))
    train(model, data, (height, width), trial.steps)
    if trial.plain['predicts']:
        predict(model, data, (height, width))
    return dict(taps={name: term.student_tap for name, term in model.kd.items()})


def alone(methods: Sequence[str]) -> bool:
    """Whether the student has no teacher but itself."""
    return any(preset.alone for method in methods for preset in METHODS[method].presets)


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
                train(model, data, size)
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


# Heads whose class scores FRS can read.
SURE = (('rpn_head', ()), ('bbox_head', ('BaseDenseHead',)))


def applicable(model: nn.Module, taps: Taps) -> list[str]:
    """The methods that a model has what they need for."""
    side = Side(model)
    found = ['cwd', 'fitnets', 'pkd', 'vkd', 'cosine', 'mgd', 'sp', 'pkt', 'rkd', 'cckd', 'nst']
    widths = [[x.shape[1] for x in _maps(taps, name)] for name in necks(model)]
    if any(len(one) > 1 and len({*one}) == 1 for one in widths) and not logits(model):
        found += ['fgd', 'defeat', 'reviewkd']
        found += ['frs'] * any(side.has(head, kinds) for head, kinds in SURE)
        found += ['fgfi'] * _has_anchors(model)
    classes = {m.out_channels for m in model.modules() if hasattr(m, 'conv_seg')}
    if any(x.shape[1] in classes for name in logits(model) for x in _maps(taps, name)):
        found += ['skd', 'intrakd', 'dsd', 'kd', 'dist', 'dkd', 'gdkd', 'nkd', 'wsld']
        found += ['edge_body', 'aicsd']
    if any(isinstance(getattr(m, 'reg_max', None), int) for m in model.modules()):
        found.append('ld')
    if hasattr(model, 'decode_head'):
        found += ['af_dcd', 'ickd', 'cross_image', 'at', 'ifvd', 'apd', 'cirkd', 'reviewkd']
        found += ['sad'] * (len(getattr(model.backbone, 'out_indices', ())) > 3)
        found += ['pea'] * side.has('backbone', ['MixVisionTransformer'])
    if _assigns(model):
        found += ['bckd', 'adl']
        found += ['crosskd'] * _has_towers(model)
    found += ['pgd'] * _guides(model)
    if any(side.has(preset.part) for preset in METHODS['dist'].presets if preset.part):
        found.append('dist')
    if side.has('roi_head') and necks(model):
        found.append('fbkd')
    if _looks_at_regions(side):
        found += ['roi_dkd', 'roi_dist']
    heads = ('panoptic_head', 'decode_head')
    if side.has('bbox_head', ['DETRHead']) or any(side.has(h, ['MaskFormerHead']) for h in heads):
        found.append('detrdistill')
    if side.has('bbox_head', ['DABDETRHead', 'DINOHead']) and not side.has(
        'bbox_head', ['DDQDETRHead']
    ):
        found.append('kddetr')
    return list(dict.fromkeys(found))


def _has_anchors(model: nn.Module) -> bool:
    check = NEEDS['anchors'].check
    try:
        if check is not None:
            check(model, model)
    except ValueError:
        return False
    return True


def _assigns(model: nn.Module) -> bool:
    """Whether there is a dense head of sigmoids whose assignment of objects can be read."""
    try:
        head_targets.check(model, model)
        head_boxes.check(model, model)
    except ValueError:
        return False
    return bool(getattr(model.bbox_head, 'use_sigmoid_cls', True))


def _guides(model: Any) -> bool:
    """Whether PGD is set for its head, and makes boxes of what that yields."""
    side = Side(model)
    kinds = [k for preset in METHODS['pgd'].presets for k in preset.kinds]
    try:
        head_boxes.check(model, model)
    except ValueError:
        return False
    return side.has('bbox_head', kinds) and side.tower('bbox_head.cls_convs') is not None


def _has_towers(model: nn.Module) -> bool:
    try:
        find_tower(model, 'bbox_head', 'student', -1)
    except ValueError:
        return False
    return True


def _looks_at_regions(side: Side) -> bool:
    """Whether a detector has a box head that can be asked about any regions."""
    if side.prefix == 'student.':  # it samples regions several times in a step
        return False
    for tap in (p.part for p in METHODS['roi_dkd'].presets if side.has(p.part)):
        try:
            check_box_heads(side.model, tap, side.model, tap)
        except ValueError:
            continue
        return True
    return False


def _maps(taps: Taps, name: str) -> list[Tensor]:
    try:
        return [x for x in taps[name] if x.dim() == 4]
    except TapError:
        return []


def train(model: Any, data: Data, size: tuple[int, int], steps: int = 1) -> None:
    """Train for some steps, and check what a method promises.

    Raises:
        ValueError: If a loss or a gradient is not finite, no gradient flows, or the teacher has
            changed.
        Exception: Whatever the model raises.
    """
    hub = MessageHub.get_current_instance()  # some losses ask it
    late = 7 * steps  # when what starts late has begun, and what stops early goes on
    hub.update_info_dict(dict(iter=late, epoch=0, max_iters=10 * steps, max_epochs=10))
    initialise(model)
    model.train()
    guests = model.kd_plan.running.values() if hasattr(model, 'kd') else ()
    teachers = nn.ModuleList([guest.teacher.model for guest in guests])
    before = copy.deepcopy(teachers.state_dict())
    optimizer = torch.optim.SGD(_trained(model).values(), lr=1e-4)
    for step in range(steps):
        hub.update_info('iter', late + step)
        batch = model.data_preprocessor(make_batch(model, data, size, True), True)
        train_step(model, batch, optimizer)
    changed = [k for k, x in teachers.state_dict().items() if not torch.equal(x, before[k])]
    if changed:
        raise ValueError(f'the teacher has changed: {", ".join(changed)}')


def train_step(model: Any, batch: Any, optimizer: torch.optim.Optimizer) -> None:
    losses = model(**batch, mode='loss')
    total, logged = model.parse_losses(losses)
    infinite = [k for k, value in logged.items() if not torch.as_tensor(value).isfinite().all()]
    if infinite:
        raise ValueError(f'not finite: {", ".join(infinite)}')
    if hasattr(model, 'kd'):
        own = [p for name, p in _trained(model).items() if not name.startswith('kd.')]
        for name, term in split_losses(losses)[1].items():
            gradients = torch.autograd.grad(term, own, retain_graph=True, allow_unused=True)
            _check_gradients(f'from the term {name!r} into the student', gradients)
    optimizer.zero_grad()
    total.backward()
    _check_gradients('into the student', [x.grad for x in _trained(model).values()])
    optimizer.step()


def initialise(model: Any) -> None:
    """Give a model its first weights."""
    try:
        model.init_weights()
    except AttributeError:  # SAN's, which can begin with those of CLIP alone
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _check_gradients(where: str, gradients: Sequence[Tensor | None]) -> None:
    received = [gradient for gradient in gradients if gradient is not None]
    if not any(gradient.any() for gradient in received):
        raise ValueError(f'no gradient flows {where}')
    if not all(gradient.isfinite().all() for gradient in received):
        raise ValueError(f'the gradient {where} is not finite')


@torch.no_grad()
def predict(model: Any, data: Data, size: tuple[int, int]) -> None:
    model.eval()
    batch = model.data_preprocessor(make_batch(model, data, size, False), False)
    model(**batch, mode='predict')
