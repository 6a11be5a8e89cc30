"""Contrast with a memory: how alike a pixel is to what the teacher has seen in other images.

Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022
(CIRKD). https://arxiv.org/abs/2204.06986
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kd_dense.adapters import BatchNorm
from kd_dense.functional import (
    at_least_float32,
    check_choice,
    check_temperature,
    divide_over_ranks,
    gather_over_ranks,
    soft_kl,
    unit,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_counts, check_same_shape, check_weights
from kd_dense.losses.features.prototypes.centres import at_features, region_centres
from kd_dense.losses.features.relations.rows import pooled, sum_over_rows

__all__ = ['Memory', 'MemoryLoss', 'memory_loss', 'pick_pixels']

Queue = Literal['ring', 'code']
PARTS = ('pixels', 'regions')


def memory_loss(
    student: Tensor,
    teacher: Tensor,
    memory: Tensor,
    valid: Tensor | None = None,
    temperature: float = 0.1,
    kd_temperature: float = 1.0,
) -> Tensor:
    r"""Compare how alike each pixel of both is to the vectors of a memory.

    With unit vectors $s_v$ and $t_v$ of the pixels and the matrix $M$ of the memory,

    $$
    \frac{T^2}{|V|} \sum_{v \in V} \mathrm{KL}\bigl(
        \sigma(M t_v / \tau T) \,\|\, \sigma(M s_v / \tau T)\bigr)
    $$

    over the pixels V that have a label, in all processes. All pixels times all vectors never
    exist at once: value and gradient are computed block by block.

    Args:
        student: Unit vectors, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        memory: Unit vectors, ``(M, C)``. None flows into it either.
        valid: Which pixels count, ``(N, H, W)``, bool; all, if left out.
        temperature: $\tau > 0$, of the contrast.
        kd_temperature: $T > 0$, higher is softer.

    Returns:
        Scalar, at least float32, in nats; 0 where no pixel counts.

    Raises:
        ValueError: If the shapes differ, or a temperature is out of range.

    Examples:
        >>> pixels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
        >>> memory_loss(pixels, pixels, torch.eye(2))
        tensor(0.)
        >>> memory_loss(pixels, pixels.flip(1), torch.eye(2))
        tensor(9.9991)
    """
    check_same_shape('memory_loss', student, teacher)
    check_temperature(temperature)
    check_temperature(kd_temperature)
    if memory.dim() != 2 or memory.shape[1] != student.shape[1]:
        raise ValueError(
            f'memory_loss expects a memory (M, {student.shape[1]}) for maps '
            f'{tuple(student.shape)}, got {tuple(memory.shape)}'
        )
    with without_autocast(student):
        ours, theirs = (
            at_least_float32(x).flatten(2).mT.flatten(0, 1)[None]
            for x in (student, teacher.detach())
        )
        counted = torch.ones_like(ours[..., :1]) if valid is None else valid.view(1, -1, 1)
        weights = divide_over_ranks(counted, counted.sum().to(ours.dtype))

        def apart(rows: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
            s, t = (x @ vectors[0].mT for x in rows[:2])
            return (soft_kl(s, t, kd_temperature, dim=2) * rows[2][..., 0]).sum(1)

        bank = memory.detach().to(ours.dtype)[None] / temperature
        return sum_over_rows(apart, [ours, theirs.to(ours.dtype), weights], [bank])[0]


class Memory(nn.Module):
    """A queue of unit vectors for each class, the same in all processes.

    Its state is in a checkpoint, so that a training that is resumed has the memory it had. It
    begins with vectors drawn at random, which are contrasted with until others take their places.

    Args:
        classes: How many queues there are.
        size: How many vectors each holds.
        channels: Their length.
        queue: ``'ring'`` overwrites the oldest. ``'code'`` does as the authors' code: what would
            reach the end of a queue overwrites its last vectors, and the next go to its front.

    Examples:
        >>> memory = Memory(classes=2, size=3, channels=1)
        >>> new = torch.tensor([5.0, 6.0]).view(1, 1, 2, 1).expand(1, 2, 2, 1)
        >>> memory.add(new, torch.tensor([[[True, True], [True, False]]]))
        >>> memory.next.tolist(), memory.vectors()[0, :2, 0].tolist()
        ([2, 1], [5.0, 6.0])
    """

    rows: Tensor
    next: Tensor

    def __init__(self, classes: int, size: int, channels: int, queue: Queue = 'ring') -> None:
        super().__init__()
        check_choice('Memory', 'queue', queue, Queue)
        self.classes, self.size, self.queue = classes, size, queue
        drawn = torch.randn(classes * size, channels)
        # The last row takes what has no place, and stays 0.
        spare = torch.zeros(1, channels)
        self.register_buffer('rows', torch.cat([nn.functional.normalize(drawn), spare]))
        self.register_buffer('next', torch.zeros(classes, dtype=torch.long))

    def vectors(self) -> Tensor:
        """The queues, ``(classes, size, channels)``."""
        return self.rows[:-1].view(self.classes, self.size, -1)

    @torch.no_grad()
    def add(self, new: Tensor, there: Tensor) -> None:
        """Put vectors into the queues, image by image, those of all processes.

        Args:
            new: ``(N, classes, U, channels)``; of each image and class those that are there come
                first. U may not exceed the size of a queue.
            there: Which are there, ``(N, classes, U)``, bool.
        """
        new, there = gather_over_ranks(new.to(self.rows.dtype)), gather_over_ranks(there.long())
        counts = there.sum(2)
        if self.queue == 'code':
            for image, here, count in zip(new, there > 0, counts, strict=True):
                fits = self.next + count < self.size
                start = torch.where(fits, self.next, self.size - count)
                self._write(image[None], here[None], start[None])
                self.next.copy_(torch.where(fits, self.next + count, 0))
            return
        before, whole = counts.cumsum(0) - counts, counts.sum(0)
        ahead = torch.arange(there.shape[2], device=there.device) + before[..., None]
        # Of more than a queue holds, the last.
        kept = (there > 0) & (whole[:, None] - ahead <= self.size)
        self._write(new, kept, self.next + before)
        self.next.copy_((self.next + whole) % self.size)

    def _write(self, new: Tensor, there: Tensor, start: Tensor) -> None:
        places = start[..., None] + torch.arange(there.shape[2], device=there.device)
        queues = torch.arange(self.classes, device=there.device)[:, None] * self.size
        slots = torch.where(there, queues + places % self.size, len(self.rows) - 1)
        self.rows.index_copy_(0, slots.flatten(), new.flatten(0, 2))
        self.rows[-1].zero_()

    def some(self, count: int) -> Tensor:
        """Vectors from the same random places of all queues, ``(classes * count, channels)``."""
        places = torch.randperm(self.size, device=self.rows.device)[:count]
        return self.vectors()[:, places].flatten(0, 1)


@torch.no_grad()
def pick_pixels(
    labels: Tensor, valid: Tensor, classes: int, count: int, literal: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw pixels of each class of each image, without replacement.

    Args:
        labels: Class of each pixel, ``(N, P)``, int64.
        valid: Which have one, ``(N, P)``, bool.
        classes: How many there are.
        count: How many pixels are drawn at most.
        literal: Do as the authors' code, which takes the number of a pixel among those of its
            class for its place in the image: the pixels are of any class then.

    Returns:
        Their places, ``(N, classes, count)``, and which are there: those come first.

    Examples:
        >>> labels = torch.tensor([[1, 0, 1, 1]])
        >>> places, there = pick_pixels(labels, labels >= 0, classes=2, count=2)
        >>> places[0, 0].tolist()[:1], there.tolist()
        ([1], [[[True, False], [True, True]]])
    """
    images, pixels = labels.shape
    key = torch.where(valid, labels, classes)
    counts = torch.zeros(images, classes + 1, dtype=torch.long, device=labels.device)
    counts.scatter_add_(1, key, torch.ones_like(key))
    first = (counts.cumsum(1) - counts)[:, :classes, None]
    shuffled = torch.rand(images, pixels, device=labels.device).argsort(1)
    order = shuffled.gather(1, key.gather(1, shuffled).argsort(dim=1, stable=True))
    number = torch.arange(count, device=labels.device)
    there = number < counts[:, :classes, None]
    index = (first + number).clamp(max=pixels - 1)
    places = order.gather(1, index.flatten(1)).view_as(index)
    if literal:
        among = key.argsort(dim=1, stable=True).argsort(1)
        places = (among.gather(1, places.flatten(1)).view_as(index) - first).clamp(0, pixels - 1)
    return places, there


class MemoryLoss(DistillLoss):
    r"""Pixels contrasted with a memory of the teacher's pixels and regions (CIRKD).

    The student's map goes through two 1x1 convolutions, with a batch norm and a ReLU between, to
    the teacher's width; both are divided by their lengths. In each step of a training up to
    ``drawn`` pixels of each class of each image, and the direction of the mean of each class of
    each image, go from the teacher's maps into the memory; then [`memory_loss`][] compares each
    pixel that has a label with as many vectors of each class, for ``pixels`` and for ``regions``.

    The authors' code has no licence: this is written from its formulas. Their settings are the
    defaults, but for the memory of pixels, which is 20000 there. It holds
    ``classes * (pixel_memory + region_memory) * channels`` numbers, in checkpoints too: 156 MB for
    19 classes of 512 channels.

    Args:
        student_channels: Width of the student's map.
        teacher_channels: Width of the teacher's.
        num_classes: Number of classes.
        weight: Factor on both parts.
        pixels: Factor on the part of that name.
        regions: Likewise.
        pixel_memory: Pixels of each class in the memory.
        region_memory: Regions likewise.
        pixel_contrast: How many pixels of the memory are compared with, of all classes together.
        region_contrast: Regions likewise.
        drawn: How many pixels of a class of an image go into the memory.
        temperature: See [`memory_loss`][].
        kd_temperature: Likewise.
        pool: Side of squares that the maps are averaged over first.
        queue: See [`Memory`][].
        literal: See [`pick_pixels`][].
        ignore_index: A label that is no class.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> loss = MemoryLoss(8, 16, num_classes=3, pixel_memory=32, region_memory=8)
        >>> labels = torch.randint(3, (2, 16, 16))
        >>> parts = loss(torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4), labels)
        >>> list(parts), loss.region_memory.next.max().item() <= 2
        (['pixels', 'regions'], True)
    """

    needs = ('segmentation',)
    parts = PARTS
    any_channels = True

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        weight: float = 1.0,
        pixels: float = 0.1,
        regions: float = 0.1,
        pixel_memory: int = 2000,
        region_memory: int = 2000,
        pixel_contrast: int = 4096,
        region_contrast: int = 1024,
        drawn: int = 16,
        temperature: float = 0.1,
        kd_temperature: float = 1.0,
        pool: int = 1,
        queue: Queue = 'ring',
        literal: bool = False,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        self.weights = check_weights('MemoryLoss', pixels=pixels, regions=regions)
        check_temperature(temperature)
        check_temperature(kd_temperature)
        check_counts(
            'MemoryLoss',
            pixel_memory=pixel_memory,
            region_memory=region_memory,
            pixel_contrast=pixel_contrast,
            region_contrast=region_contrast,
            drawn=drawn,
            pool=pool,
        )
        if pixel_memory < drawn:
            raise ValueError(
                f'MemoryLoss expects pixel_memory >= drawn={drawn}, what one image may bring, '
                f'got {pixel_memory!r}'
            )
        self.num_classes = num_classes
        self.contrast = [n // num_classes + 1 for n in (pixel_contrast, region_contrast)]
        self.drawn = drawn
        self.temperature = temperature
        self.kd_temperature = kd_temperature
        self.pool = pool
        self.literal = literal
        self.ignore_index = ignore_index
        self.project = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            BatchNorm(teacher_channels),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.pixel_memory = Memory(num_classes, pixel_memory, teacher_channels, queue)
        self.region_memory = Memory(num_classes, region_memory, teacher_channels, queue)

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> dict[str, Tensor]:
        with without_autocast(student):
            ours, theirs = (pooled(x, self.pool) for x in (student, teacher.detach()))
            labels, valid = at_features(
                'MemoryLoss', ours, theirs, segmentation, self.num_classes, self.ignore_index
            )
            ours, theirs = unit(self.project(ours), 1), unit(theirs, 1)
            if self.training:
                self.remember(theirs, labels, valid)
        memories = self.pixel_memory, self.region_memory
        parts = zip(PARTS, memories, self.contrast, strict=True)
        return {
            name: self.weight * self.weights[name] * memory_loss(
                ours, theirs, memory.some(count), valid, self.temperature, self.kd_temperature
            )
            for name, memory, count in parts
        }  # fmt: skip

    def remember(self, teacher: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Put pixels and regions of a batch into the memory.

        Args:
            teacher: Unit vectors of its maps, ``(N, C, H, W)``.
            labels: Their classes, ``(N, H, W)``.
            valid: Which have one, ``(N, H, W)``.
        """
        means = region_centres(teacher, labels, valid, self.num_classes)
        rows = teacher.flatten(2).transpose(1, 2)
        labels, valid = labels.flatten(1), valid.flatten(1)
        places, there = pick_pixels(labels, valid, self.num_classes, self.drawn, self.literal)
        self.region_memory.add(means[:, :, None], there[:, :, :1])
        picked = rows.gather(1, places.flatten(1)[..., None].expand(-1, -1, rows.shape[2]))
        self.pixel_memory.add(picked.unflatten(1, places.shape[1:]), there)
