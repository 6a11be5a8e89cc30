"""FGD as its equations read, to be measured against.

It imitates how the published code goes about it: a loop over images and boxes that reads the
corners of each box on the host, a question to the device for each image, eight maps of the
weighted features of teacher and student, and a sum of the context and the map for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward
from kd_dense.losses.fgd import GlobalContext, box_masks, fgd_loss

__all__ = ['cases', 'make_boxes', 'plain_fgd', 'plain_masks']

PIXELS = (800, 1216)
LEVELS = ((100, 152), (50, 76), (25, 38), (13, 19), (7, 10))  # P3 to P7
# The weights of the parts, as published for RetinaNet and GFL.
WEIGHTS = dict(foreground=1e-3, background=5e-4, attention=5e-4, relation=5e-6)


def plain_masks(
    boxes: Sequence[Tensor], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What ``kd_dense.losses.fgd.box_masks`` gives for boxes that lie in the image."""
    height, width = size
    foreground = boxes[0].new_zeros(len(boxes), height, width)
    background = torch.zeros_like(foreground)
    for image, image_boxes in enumerate(boxes):
        scaled = torch.empty_like(image_boxes)
        scaled[:, 0::2] = image_boxes[:, 0::2] * width / shape[1]
        scaled[:, 1::2] = image_boxes[:, 1::2] * height / shape[0]
        left, top = scaled[:, 0].floor().int(), scaled[:, 1].floor().int()
        right, bottom = scaled[:, 2].ceil().int(), scaled[:, 3].ceil().int()
        weight = 1 / ((bottom + 1 - top) * (right + 1 - left)).to(foreground.dtype)
        for i in range(len(image_boxes)):
            rows, columns = slice(top[i], bottom[i] + 1), slice(left[i], right[i] + 1)
            covered = foreground[image, rows, columns]
            foreground[image, rows, columns] = torch.maximum(covered, weight[i])
        background[image] = torch.where(foreground[image] > 0, 0.0, 1.0)
        if torch.sum(background[image]) > 0:
            background[image] /= torch.sum(background[image])
    return foreground, background


def plain_attention(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    strength = x.abs()
    where = strength.mean(1).view(images, -1) / temperature
    where = (height * width * where.softmax(1)).view(images, height, width)
    which = channels * (strength.mean(3).mean(2) / temperature).softmax(1)
    return where, which


def plain_context(x: Tensor, block: GlobalContext) -> Tensor:
    """The map with what a global context block adds to it."""
    images, channels, height, width = x.shape
    logits = F.conv2d(x, block.attention.weight[:, :, None, None])
    attention = logits.view(images, 1, height * width).softmax(2)[..., None]
    context = torch.matmul(x.view(images, 1, channels, height * width), attention)
    added: Tensor = block.transform(context.view(images, channels))
    return x + added[:, :, None, None]


def plain_fgd(
    student: Tensor,
    teacher: Tensor,
    boxes: Sequence[Tensor],
    shape: tuple[int, int],
    student_context: GlobalContext,
    teacher_context: GlobalContext,
    temperature: float = 0.5,
) -> dict[str, Tensor]:
    """What ``kd_dense.losses.fgd.fgd_loss`` gives for boxes that lie in the image."""
    images = len(student)
    where_t, which_t = plain_attention(teacher, temperature)
    where_s, which_s = plain_attention(student, temperature)
    foreground, background = plain_masks(boxes, shape, (student.shape[2], student.shape[3]))
    foreground, background = foreground[:, None], background[:, None]
    channel, space = which_t[:, :, None, None], where_t[:, None]

    taught = torch.mul(torch.mul(teacher, space.sqrt()), channel.sqrt())
    taught_foreground = torch.mul(taught, foreground.sqrt())
    taught_background = torch.mul(taught, background.sqrt())
    ours = torch.mul(torch.mul(student, space.sqrt()), channel.sqrt())
    our_foreground = torch.mul(ours, foreground.sqrt())
    our_background = torch.mul(ours, background.sqrt())

    masks = (where_s - where_t).abs().sum() + (which_s - which_t).abs().sum()
    related = plain_context(student, student_context), plain_context(teacher, teacher_context)
    parts = {
        'foreground': F.mse_loss(our_foreground, taught_foreground, reduction='sum'),
        'background': F.mse_loss(our_background, taught_background, reduction='sum'),
        'attention': masks,
        'relation': F.mse_loss(*related, reduction='sum'),
    }
    return {name: part / images for name, part in parts.items()}


def make_boxes(
    images: int,
    count: int,
    pixels: tuple[int, int],
    device: str,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Boxes of many sizes, inside the image."""
    generator = torch.Generator().manual_seed(1)
    height, width = pixels
    limit = torch.tensor([width, height], dtype=torch.float64)
    boxes = []
    for _ in range(images):
        side = 16 * (limit / 2 / 16) ** torch.rand(
            count, 2, generator=generator, dtype=torch.float64
        )
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (limit - side)
        boxes.append(torch.cat([corner, corner + side], 1).to(device, dtype))
    return boxes


def make_masks(device: str, small: bool) -> Pair:
    images, count = (2, 4) if small else (8, 100)
    pixels, levels = ((40, 48), ((5, 6), (3, 3))) if small else (PIXELS, LEVELS)
    dtype = torch.float64 if small else torch.float32
    boxes = make_boxes(images, count, pixels, device, dtype)

    def ours() -> list[Tensor]:
        return [mask for size in levels for mask in box_masks(boxes, [pixels], size, dtype)]

    def reference() -> list[Tensor]:
        return [mask for size in levels for mask in plain_masks(boxes, pixels, size)]

    return Pair(ours, reference)


def make_fgd(device: str, small: bool) -> Pair:
    # With 0 two attentions are equal but for rounding, which then decides the slope of |a - b|.
    torch.manual_seed(1)
    images, channels, count = (2, 4, 3) if small else (2, 256, 8)
    pixels, levels = ((40, 48), ((5, 6), (3, 3))) if small else (PIXELS, LEVELS)
    like: Any = dict(dtype=torch.float64 if small else torch.float32, device=device)
    boxes = make_boxes(images, count, pixels, device, like['dtype'])
    students = [torch.randn(images, channels, *size, **like).requires_grad_() for size in levels]
    teachers = [torch.randn(images, channels, *size, **like) for size in levels]
    pairs = [
        (GlobalContext(channels).to(**like), GlobalContext(channels).to(**like)) for _ in levels
    ]
    parameters = [p for pair in pairs for block in pair for p in block.parameters()]
    for parameter in parameters:  # also where they start as zeros
        torch.nn.init.normal_(parameter, std=0.1)

    def total(parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()

    def ours() -> Tensor:
        values = [
            total(fgd_loss(s, t, boxes, pixels, [pixels] * images, *pair))
            for s, t, pair in zip(students, teachers, pairs, strict=True)
        ]
        return torch.stack(values).sum()

    def reference() -> Tensor:
        values = [
            total(plain_fgd(s, t, boxes, pixels, *pair))
            for s, t, pair in zip(students, teachers, pairs, strict=True)
        ]
        return torch.stack(values).sum()

    inputs = [*students, *parameters]
    return Pair(forward_backward(ours, inputs), forward_backward(reference, inputs))


def cases() -> list[Case]:
    """Rows of the benchmark."""
    return [
        Case(
            'fgd',
            'FGD, P3 to P7 of 800x1216, 256 channels, 2 images of 8 boxes',
            make_fgd,
            goal_speed=3.0,
            goal_memory=1 / 3,
        ),
        Case(
            'fgd-masks',
            'FGD masks, P3 to P7 of 800x1216, 8 images of 100 boxes',
            make_masks,
            goal_speed=4.0,
        ),
    ]
