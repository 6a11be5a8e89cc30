"""CIRKD's memories: of pixels and regions, and that of channels, which its repository adds."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from kd_dense.functional import unit
from kd_dense.losses import FitNetsLoss, MemoryLoss, cross_image_loss, memory_loss
from kd_dense.losses.features.memory import Memory
from tests.oracle.replay_mimic import Tensors, is_input, replay

if TYPE_CHECKING:
    from tests.oracle.lane import Case

MODULE = 'kd_dense.losses.features.memory'


def _perms(tensors: Tensors) -> list[Tensor]:
    count = sum(name.startswith('perm/') for name in tensors)
    return [tensors[f'perm/{i}'].long() for i in range(count)]


def _picked(labels: Tensor, valid: Tensor, perms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The places that were recorded, of each class of each image in ascending order."""
    classes, drawn = 1 + int(labels.max()), 16
    perms = list(perms)
    places = torch.zeros(len(labels), classes, drawn, dtype=torch.long)
    there = torch.zeros_like(places, dtype=torch.bool)
    for image, (label, known) in enumerate(zip(labels, valid, strict=True)):
        for one in label[known].unique().tolist():
            perm = perms.pop(0)
            assert len(perm) == int((label[known] == one).sum())
            places[image, one, : min(len(perm), drawn)] = perm[:drawn]
            there[image, one, : min(len(perm), drawn)] = True
    return places, there


def _contrast(case: Case, tensors: Tensors) -> tuple[Tensors, MemoryLoss]:
    arguments = case.arguments
    classes = arguments['num_classes']
    loss = MemoryLoss(
        arguments['s_channels'],
        arguments['t_channels'],
        classes,
        pixels=1.0,
        regions=1.0,
        pixel_memory=arguments['pixel_memory_size'],
        region_memory=arguments['region_memory_size'],
        temperature=arguments['contrast_temperature'],
        kd_temperature=arguments['contrast_kd_temperature'],
        queue='code',
        literal=True,
        ignore_index=arguments['ignore_label'],
    ).to(tensors['student'].dtype)
    loss.contrast = [arguments['pixel_contrast_size'], arguments['region_contrast_size']]
    for name, one in (('pixel', loss.pixel_memory), ('region', loss.region_memory)):
        one.vectors().copy_(tensors[f'{name}_queue_before'])
        one.next.copy_(tensors[f'{name}_ptr_before'])
    perms = _perms(tensors)

    def pick(labels: Tensor, valid: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        places, there = _picked(labels, valid, perms[:-2])
        missing = classes - places.shape[1]
        return F.pad(places, (0, 0, 0, missing)), F.pad(there, (0, 0, 0, missing))

    learnt = {n.replace('param/project_head', 'project'): x for n, x in tensors.items()
              if n.startswith('param/')}  # fmt: skip
    drawn = mock.Mock(side_effect=lambda *_, **__: perms[-2:][drawn.call_count - 1])
    with (
        mock.patch(f'{MODULE}.pick_pixels', pick),
        mock.patch('torch.randperm', drawn),
    ):
        maps = tensors['student'], tensors['teacher'], tensors['target'].long()
        parts = functional_call(loss, learnt, maps)
    return {'loss_pixel': parts['pixels'], 'loss_region': parts['regions']}, loss


def _inputs(case: Case, dtype: torch.dtype = torch.float64) -> Tensors:
    return {n: case.tensor(n, dtype) for n in case.arrays if is_input(n) and 'after' not in n}


def _replay_contrast(case: Case) -> Tensors:
    tensors = _inputs(case)
    learnt = [n.removeprefix('grad_') for n in case.arrays if n.startswith('grad_')]
    leaves = [tensors[name].requires_grad_() for name in learnt]
    parts, loss = _contrast(case, tensors)
    value = torch.stack([*parts.values()]).sum()
    grads = torch.autograd.grad(value, leaves)
    single = torch.stack([*_contrast(case, _inputs(case, torch.float32))[0].values()]).sum()
    return {
        **parts,
        **{f'grad_{name}': grad for name, grad in zip(learnt, grads, strict=True)},
        'loss': value,
        'loss_f32': single,
        'pixel_queue_after': loss.pixel_memory.vectors(),
        'region_queue_after': loss.region_memory.vectors(),
        'pixel_ptr_after': loss.pixel_memory.next,
        'region_ptr_after': loss.region_memory.next,
    }


def _channels(case: Case, tensors: Tensors) -> tuple[Tensors, Memory]:
    """The queue of channels: each is a vector of positions."""
    arguments = case.arguments
    maps = (F.avg_pool2d(tensors[name], 4, 4, ceil_mode=True) for name in ('student', 'teacher'))
    widths = arguments['s_size'][1], arguments['t_size'][1]
    project = MemoryLoss(*widths, num_classes=1).project
    learnt = {n.removeprefix('param/project_head.'): x for n, x in tensors.items()
              if n.startswith('param/')}  # fmt: skip
    student, teacher = maps
    student = functional_call(project, learnt, student)
    student, teacher = (unit(x.flatten(2)).mT[..., None] for x in (student, teacher))
    size = arguments['channel_memory_size']
    queue = Memory(1, size, student.shape[1], queue='code').to(student.dtype)
    queue.vectors().copy_(tensors['channel_queue_before'])
    queue.next.copy_(tensors['channel_ptr_before'])
    order, places = _perms(tensors)
    new = teacher[..., 0].mT.flatten(0, 1)[order][None, None]
    queue.add(new, torch.ones_like(new[..., 0], dtype=torch.bool))
    bank = queue.vectors()[0, places[: arguments['channel_contrast_size']]]
    temperatures = arguments['contrast_temperature'], arguments['contrast_kd_temperature']
    parts = {
        'loss_batch_channel': cross_image_loss(student, teacher, temperatures[0]),
        'loss_memory_channel': memory_loss(student, teacher, bank, None, *temperatures),
        'loss_channel_mse': FitNetsLoss()(student, teacher),
    }
    return parts, queue


def _replay_channels(case: Case) -> Tensors:
    parts, queue = _channels(case, _inputs(case))
    after = {'channel_queue_after': queue.vectors()[0], 'channel_ptr_after': queue.next}

    def loss(case: Case, tensors: Tensors) -> Tensor:
        return torch.stack([*_channels(case, tensors)[0].values()]).sum()

    return {**replay(case, loss), **parts, **after}


REPLAYS = {
    ('cirkd.npz', 'StudentSegContrast'): _replay_contrast,
    ('cirkd.npz', 'StudentSegChannelContrast'): _replay_channels,
}
INPUTS = dict.fromkeys(REPLAYS, lambda name: is_input(name) and 'after' not in name)
