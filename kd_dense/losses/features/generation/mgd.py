"""Masked generative distillation (MGD).

Yang et al., "Masked Generative Distillation", ECCV 2022. https://arxiv.org/abs/2205.01529
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kd_dense.functional import at_least_float32, check_choice, without_autocast
from kd_dense.losses.base import DistillLoss, check_same_shape
from kd_dense.losses.features.mimic.mimic import mimic_loss

__all__ = ['Generator', 'MGDLoss', 'MaskOver', 'check_mask_ratio', 'draw_mask', 'mgd_loss']

MaskOver = Literal['positions', 'channels']


class Generator(nn.Module):
    """Two 3x3 convolutions with a ReLU between, which make a map out of a masked one.

    Args:
        channels: C of the map.
        deep: Put a second branch behind one more 3x3 convolution and ReLU, and yield the mean of
            both: the "enhanced projector" of Af-DCD.

    Examples:
        >>> Generator(8)(torch.zeros(2, 8, 5, 6)).shape
        torch.Size([2, 8, 5, 6])
    """

    def __init__(self, channels: int, deep: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.deep_first = nn.Conv2d(channels, channels, 3, padding=1) if deep else None
        self.deep_last = nn.Conv2d(channels, channels, 3, padding=1) if deep else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y: Tensor = self.last(x)
        if self.deep_first is not None and self.deep_last is not None:
            y = (y + self.deep_last(self.deep_first(x).relu())) / 2
        return y


def draw_mask(like: Tensor, ratio: float, over: MaskOver = 'positions') -> Tensor:
    """Draw a mask that is 0 with a probability of ``ratio`` and 1 elsewhere.

    It is drawn on the device of the map, by its default generator.

    Args:
        like: The map, ``(N, C, H, W)``.
        ratio: From 0, which masks nothing, to 1.
        over: ``'positions'`` draws for each position of each image, for all channels together;
            ``'channels'`` for each channel of each image.

    Returns:
        ``(N, 1, H, W)`` or ``(N, C, 1, 1)``, at least float32.

    Examples:
        >>> draw_mask(torch.zeros(1, 2, 1, 3), ratio=0.0)
        tensor([[[[1., 1., 1.]]]])
    """
    images, channels, height, width = like.shape
    shape = (images, channels, 1, 1) if over == 'channels' else (images, 1, height, width)
    drawn = torch.rand(shape, device=like.device)
    return (drawn >= ratio).to(at_least_float32(like[:0]).dtype)


def mgd_loss(student: Tensor, teacher: Tensor, generator: nn.Module, mask: Tensor) -> Tensor:
    r"""Generate the teacher's features from what a mask leaves of the student's.

    $$
    \frac{1}{N} \sum_{n, c, p} \bigl(g(m \odot s)_{n, c, p} - t_{n, c, p}\bigr)^2
    $$

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        generator: $g$, as a [`Generator`][kd_dense.losses.features.generation.mgd.Generator], in
            the dtype of the maps (float32 for maps of half precision). It is trained.
        mask: $m$, which [`draw_mask`][kd_dense.losses.features.generation.mgd.draw_mask] draws:
            ``(N, 1, H, W)`` or ``(N, C, 1, 1)``.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes differ, or those of the mask do not fit.

    Examples:
        >>> student, teacher = torch.ones(1, 2, 3, 3), torch.full((1, 2, 3, 3), 3.0)
        >>> mgd_loss(student, teacher, torch.nn.Identity(), torch.zeros(1, 1, 3, 3))
        tensor(162.)
    """
    generated = generate('mgd_loss', student, teacher, generator, mask)
    return mimic_loss(generated, teacher, reduction='image')


def generate(
    owner: str, student: Tensor, teacher: Tensor, generator: nn.Module, mask: Tensor
) -> Tensor:
    """What the generator makes of the student's masked map, in at least float32."""
    check_same_shape(owner, student, teacher)
    images, channels, height, width = student.shape
    if mask.shape not in ((images, 1, height, width), (images, channels, 1, 1)):
        raise ValueError(
            f'{owner} expects a mask ({images}, 1, {height}, {width}) over positions or '
            f'({images}, {channels}, 1, 1) over channels, got {tuple(mask.shape)}; draw_mask '
            'draws one'
        )
    with without_autocast(student):
        student = at_least_float32(student)
        generated: Tensor = generator(student * mask.to(student.dtype))
    return generated


def check_mask_ratio(owner: str, ratio: float) -> None:
    """Raise ``ValueError`` unless ``ratio`` is a share."""
    if not 0 <= ratio <= 1:
        raise ValueError(f'{owner} expects 0 <= mask_ratio <= 1, got mask_ratio={ratio!r}')


class MGDLoss(DistillLoss):
    """Module form of [`mgd_loss`][], times ``weight``: it draws the mask and has the generator.

    The authors' settings (Apache-2.0) are ``weight=2e-5, mask_ratio=0.65`` for dense detectors
    and SOLO, ``5e-7, 0.45`` for Faster and Mask R-CNN, and ``2e-5, 0.75`` for segmenters. For
    classifiers they mask channels, with ``7e-5, 0.15``.

    Args:
        channels: Channels of the maps.
        weight: Factor on the result.
        mask_ratio: Share of the student's features that is masked.
        mask_over: ``'positions'`` or ``'channels'``.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> loss = MGDLoss(channels=16)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 16, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        weight: float = 2e-5,
        mask_ratio: float = 0.65,
        mask_over: MaskOver = 'positions',
    ) -> None:
        super().__init__(weight)
        check_mask_ratio('MGDLoss', mask_ratio)
        check_choice('MGDLoss', 'mask_over', mask_over, MaskOver)
        self.mask_ratio = mask_ratio
        self.mask_over: MaskOver = mask_over
        self.generator = Generator(channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        mask = draw_mask(student, self.mask_ratio, self.mask_over)
        return self.weight * mgd_loss(student, teacher, self.generator, mask)
