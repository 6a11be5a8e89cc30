"""Structured knowledge distillation (SKD): pixel-wise, pair-wise and holistic.

Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019;
extended as "Structured Knowledge Distillation for Dense Prediction", TPAMI 2020.
https://arxiv.org/abs/1903.04197
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_dense.critic import Critic, CriticKind, Preprocess, critic_loss, gradient_penalty
from kd_dense.functional import (
    at_least_float32,
    check_choice,
    check_published_batch,
    check_temperature,
    soft_cross_entropy,
    soft_kl_total,
    two_class_logits,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, check_same_size, check_weights

__all__ = [
    'HolisticLoss',
    'PairWiseLoss',
    'PixelWiseLoss',
    'pair_wise_loss',
    'pixel_wise_loss',
]

Divergence = Literal['cross_entropy', 'kl']


def pixel_wise_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    divergence: Divergence = 'cross_entropy',
    published_batch: int | None = 8,
) -> Tensor:
    r"""Match the class distributions of student and teacher at every position.

    $$
    -\frac{B}{N} \frac{T^2}{H W} \sum_{n, i} \sum_c
        \sigma(t_{n, i} / T)_c \, \log\, \sigma(s_{n, i} / T)_c
    $$

    The authors divide the sum by H W and not by the number of images, so that their weight of
    10 belongs to their batch of $B = 8$ images. ``divergence='kl'`` subtracts the
    teacher's entropy: the gradient stays, and the value is 0 where the two agree. A single channel
    is the logit $z$ of one class against none, which is two channels $(0, z)$: see
    [`kd_dense.functional.two_class_logits`][].

    Args:
        student: Logits, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        temperature: $T > 0$, higher is softer. The authors have none, which is 1.
        divergence: ``'cross_entropy'`` or ``'kl'``.
        published_batch: $B$. ``None`` sums over the images of the batch, whatever their
            number, as the authors' code does.

    Returns:
        Scalar, at least float32, in nats.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Examples:
        >>> logits = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
        >>> pixel_wise_loss(logits, logits, published_batch=1)
        tensor(0.8324)
        >>> pixel_wise_loss(logits, logits, divergence='kl')
        tensor(0.)
    """
    check_same_shape('pixel_wise_loss', student, teacher)
    check_temperature(temperature)
    check_choice('pixel_wise_loss', 'divergence', divergence, Divergence)
    check_published_batch('pixel_wise_loss', published_batch)
    images, _, height, width = student.shape
    student, teacher = two_class_logits(student), two_class_logits(teacher)
    factor = (published_batch or images) / images / (height * width)
    if divergence == 'kl':
        return soft_kl_total([student], [teacher], temperature, 1, factor)
    return soft_cross_entropy(student, teacher, temperature, factor)


def pair_wise_loss(
    student: Tensor, teacher: Tensor, scale: float = 0.5, detach_norm: bool = True
) -> Tensor:
    r"""Match how alike the regions of an image are to each other.

    Max pooling makes a map into P nodes. With $f_{n, i}$ for the features of node i,

    $$
    \frac{1}{N P^2} \sum_{n, i, j} \bigl(a^s_{n, i, j} - a^t_{n, i, j}\bigr)^2,
    \qquad a_{n, i, j} = \frac{f_{n, i}^\top f_{n, j}}
        {(\|f_{n, i}\| + \epsilon)(\|f_{n, j}\| + \epsilon)}, \quad \epsilon = 10^{-8}
    $$

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features of the same N, H and W; its channels may be more or fewer. No
            gradient flows into it.
        scale: Side of a pooling window, and its stride, as a share of the map: height and
            width, each times this, rounded down, at least 1. A last window that is cut off
            counts too. The authors' 0.5 makes 2x2 nodes of maps of even size, 3x3 of odd.
        detach_norm: Whether the gradient takes the norms for constants, as in the authors'
            code. The value is the same.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the sizes differ or ``scale`` is not in (0, 1].

    Examples:
        >>> student = torch.tensor([[1.0, 1.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> teacher = torch.tensor([[3.0, 0.0], [0.0, 5.0]]).view(1, 2, 1, 2)
        >>> pair_wise_loss(student, teacher)
        tensor(0.1000)
    """
    check_same_size('pair_wise_loss', student, teacher)
    _check_scale('pair_wise_loss', scale)
    with without_autocast(student):
        ours = unit_nodes(student, scale, detach_norm)
        theirs = unit_nodes(teacher.detach(), scale, detach_norm)
        distance: Tensor = _AffinityDistance.apply(ours, theirs.to(ours.dtype))
        return distance


def unit_nodes(x: Tensor, scale: float, detach_norm: bool) -> Tensor:
    """Features ``(N, C, P)`` of the nodes of maps ``(N, C, H, W)``, each divided by its norm."""
    window = [max(1, int(side * scale)) for side in x.shape[-2:]]
    nodes = at_least_float32(F.max_pool2d(x, window, ceil_mode=True)).flatten(2)
    norm = torch.linalg.vector_norm(nodes, dim=1, keepdim=True) + 1e-8
    unit: Tensor = nodes / (norm.detach() if detach_norm else norm)
    return unit


class _AffinityDistance(torch.autograd.Function):
    """Mean squared difference of the affinities of two sets of nodes, ``(N, C, P)`` each.

    Of all that has nodes squared, the difference of the affinities alone is ever made.
    """

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor) -> Tensor:
        difference = torch.bmm(theirs.mT, theirs)
        difference = torch.baddbmm(difference, ours.mT, ours, beta=-1, out=difference)
        ctx.save_for_backward(ours, difference)
        # Row by row, because in float32 the norm of millions of numbers is off by 0.5 %.
        norms: Tensor = torch.linalg.vector_norm(difference, dim=2)
        return torch.dot(norms.flatten(), norms.flatten()) / difference.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        ours, difference = ctx.saved_tensors
        with without_autocast(ours):
            share = 4 / difference.numel()
            return torch.baddbmm(ours, ours, difference, beta=0, alpha=share) * upstream, None


def _check_scale(owner: str, scale: float) -> None:
    if not 0 < scale <= 1:
        raise ValueError(f'{owner} expects 0 < scale <= 1, got scale={scale}')


class PixelWiseLoss(DistillLoss):
    """Module form of [`pixel_wise_loss`][], times ``weight``.

    The authors' weight is 10.

    Args:
        weight: Factor on the result.
        temperature: See [`pixel_wise_loss`][], as the other arguments.

    Examples:
        >>> loss = PixelWiseLoss(weight=10.0)
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 19, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        divergence: Divergence = 'cross_entropy',
        published_batch: int | None = 8,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_choice('PixelWiseLoss', 'divergence', divergence, Divergence)
        check_published_batch('PixelWiseLoss', published_batch)
        self.temperature = temperature
        self.divergence: Divergence = divergence
        self.published_batch = published_batch

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * pixel_wise_loss(
            student, teacher, self.temperature, self.divergence, self.published_batch
        )


class PairWiseLoss(DistillLoss):
    """Module form of [`pair_wise_loss`][], times ``weight``.

    The authors' setting for a segmenter is ``weight=0.5, scale=0.5``.

    Args:
        weight: Factor on the result.
        scale: See [`pair_wise_loss`][].
        detach_norm: See [`pair_wise_loss`][].

    Examples:
        >>> loss = PairWiseLoss(weight=0.5)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(self, weight: float = 1.0, scale: float = 0.5, detach_norm: bool = True) -> None:
        super().__init__(weight)
        _check_scale('PairWiseLoss', scale)
        self.scale = scale
        self.detach_norm = detach_norm

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * pair_wise_loss(student, teacher, self.scale, self.detach_norm)


class HolisticLoss(DistillLoss):
    r"""Make the student's maps pass for the teacher's, in the eyes of a critic.

    With the critic $f$, the student is trained on

    $$
    -\frac{1}{N} \sum_n f(s_n)
    $$

    and the critic, in turn, on [`kd_dense.critic.critic_loss`][], plus
    ``gradient_penalty`` times [`kd_dense.critic.gradient_penalty`][] if it is a
    ``'wgan-gp'``. Its parameters have ``requires_grad=False``, so that neither the student's
    optimizer nor DDP trains it. ``kd_dense.CriticHook`` does. Without mmengine:

    1. ``loss(student, teacher).backward()`` and the step of the student's optimizer,
    2. ``loss.critic_backward()`` and the step of an optimizer of ``loss.critic.parameters()``.

    Args:
        channels: Channels of the maps; for logits, the number of classes.
        weight: Factor on both results, as in the authors' code.
        kind: ``'wgan-gp'`` (the authors' default) or ``'hinge'``.
        gradient_penalty: Factor on the penalty of ``'wgan-gp'``.
        preprocess: What the critic does to the maps, see [`kd_dense.critic.Critic`][].
        width: How wide the critic is, see there.

    Raises:
        ValueError: If an argument is unknown or negative.

    Examples:
        >>> loss = HolisticLoss(channels=19)
        >>> optimizer = torch.optim.Adam(loss.critic.parameters(), lr=4e-4)
        >>> student = torch.randn(2, 19, 16, 16, requires_grad=True)
        >>> loss(student, torch.randn(2, 19, 16, 16)).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 16, 16])
        >>> value = loss.critic_backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        channels: int,
        weight: float = 0.1,
        kind: CriticKind = 'wgan-gp',
        gradient_penalty: float = 10.0,
        preprocess: Preprocess = 'batch_norm',
        width: int = 64,
    ) -> None:
        super().__init__(weight)
        check_choice('HolisticLoss', 'kind', kind, CriticKind)
        check_weights('HolisticLoss', gradient_penalty=gradient_penalty)
        self.channels = channels
        self.kind: CriticKind = kind
        self.gradient_penalty = gradient_penalty
        self.critic = Critic(channels, preprocess, width).requires_grad_(False)
        self._maps: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy, as for EMA, does not train the critic on maps of this one.
        return {**super().__getstate__(), '_maps': None}

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Ask the critic about the student's maps.

        Args:
            student: Maps, ``(N, channels, H, W)``.
            teacher: Same shape; kept for the critic's own step.

        Returns:
            Scalar, at least float32.

        Raises:
            ValueError: If the shapes differ.
            RuntimeError: If the critic has not been trained since the last call.
        """
        check_same_shape('HolisticLoss', student, teacher)
        if student.shape[1] != self.channels:
            raise ValueError(
                f'HolisticLoss(channels={self.channels}) expects maps of as many channels, '
                f'got {tuple(student.shape)}'
            )
        if self.training and self.weight > 0 and torch.is_grad_enabled():
            if self._maps is not None:
                raise RuntimeError(
                    'the critic is not being trained: add '
                    "custom_hooks=[dict(type='kd_dense.CriticHook')] to the config, or, without "
                    'mmengine, call critic_backward() and step an optimizer of the critic after '
                    'each iteration'
                )
            self._maps = student.detach(), teacher.detach()
        return -self.weight * at_least_float32(self.critic(student)).mean()

    @property
    def critic_is_due(self) -> bool:
        """Whether there are maps that the critic has not been trained on."""
        return self._maps is not None

    def critic_backward(self, share: float = 1.0) -> Tensor:
        """Add the gradient of the critic's own loss to that of its parameters.

        The loss is that of the maps of the last forward in training mode, which are dropped.
        (It is not returned for a backward of its own, because the parameters need
        ``requires_grad`` until then.)

        Args:
            share: Factor on the gradient, as ``1 / k`` for an accumulation over k batches.

        Returns:
            The critic's loss, without ``weight`` and ``share``: a detached scalar.

        Raises:
            RuntimeError: If there was no such forward.
        """
        if self._maps is None:
            raise RuntimeError(
                'critic_backward() expects a forward in training mode, with a weight above 0, '
                'before each call'
            )
        (student, teacher), self._maps = self._maps, None
        self.critic.requires_grad_(True)
        try:
            with without_autocast(student):  # around backward as well
                scores = self.critic(teacher)
                loss = critic_loss(self.critic(student), scores, self.kind)
                if self.kind == 'wgan-gp':
                    penalty = gradient_penalty(self.critic, student, teacher)
                    loss = loss + self.gradient_penalty * penalty
                (share * self.weight * loss).backward()
        finally:
            self.critic.requires_grad_(False)
        return loss.detach()
