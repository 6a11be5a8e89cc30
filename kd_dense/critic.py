"""The critic of an adversarial distillation loss, and what it is trained on.

Liu et al., "Structured Knowledge Distillation for Dense Prediction", CVPR 2019, TPAMI 2020.
https://arxiv.org/abs/1903.04197. The network is that of Zhang et al., "Self-Attention
Generative Adversarial Networks", ICML 2019. https://arxiv.org/abs/1805.08318
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kd_dense.functional import check_choice, without_autocast

__all__ = [
    'Critic',
    'CriticKind',
    'Preprocess',
    'SelfAttention',
    'SpectralConv2d',
    'critic_loss',
    'gradient_penalty',
]

CriticKind = Literal['wgan-gp', 'hinge']
Preprocess = Literal['batch_norm', 'tanh', 'image']
SMALLEST = 64  # four strides of 2 leave the 4x4 that the last convolution covers


class Critic(nn.Module):
    """Score maps: high for those of the teacher, low for those of the student.

    Four spectrally normalised 4x4 convolutions of stride 2 (1, 2, 4, 8 times ``width`` channels,
    leaky ReLU of 0.1), self-attention after the third and the fourth, and a 4x4 convolution to one
    channel. Made for logits of 65x65, which it turns into one number. Larger maps give a map
    of numbers, which are averaged; maps with a side below 64 are enlarged bilinearly until
    the shorter side has 64. It computes in the precision of its weights, autocast or not.

    Args:
        channels: Channels of the maps; for logits, the number of classes.
        preprocess: What is done to the maps first. ``'batch_norm'`` is the authors' setting:
            it hides from the critic how large the logits are. It counts the images of all
            processes. ``'tanh'`` squashes each value; ``'image'`` maps 0..255 to -1..1.
        width: Channels of the first convolution, a multiple of 2; the authors' critic has 64.

    Raises:
        ValueError: If ``preprocess`` is unknown, or ``width`` is odd or not positive.

    Examples:
        >>> critic = Critic(channels=19)
        >>> critic(torch.randn(2, 19, 65, 65)).shape
        torch.Size([2])
        >>> critic(torch.randn(2, 19, 24, 40)).shape
        torch.Size([2])
    """

    def __init__(
        self, channels: int, preprocess: Preprocess = 'batch_norm', width: int = 64
    ) -> None:
        super().__init__()
        check_choice('Critic', 'preprocess', preprocess, Preprocess)
        if width < 2 or width % 2:
            raise ValueError(f'Critic expects width as a positive multiple of 2, got {width}')
        self.preprocess = preprocess
        self.norm = BatchNorm(channels) if preprocess == 'batch_norm' else None
        self.conv1 = SpectralConv2d(channels, width, 4, stride=2, padding=1)
        self.conv2 = SpectralConv2d(width, 2 * width, 4, stride=2, padding=1)
        self.conv3 = SpectralConv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.attention1 = SelfAttention(4 * width)
        self.conv4 = SpectralConv2d(4 * width, 8 * width, 4, stride=2, padding=1)
        self.attention2 = SelfAttention(8 * width)
        self.last = nn.Conv2d(8 * width, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Score maps.

        Args:
            x: Maps, ``(N, channels, H, W)``.

        Returns:
            Scores, ``(N,)``.
        """
        with without_autocast(x):
            x = x.to(self.last.weight.dtype)
            if self.norm is not None:
                x = self.norm(x)
            else:
                x = x.tanh() if self.preprocess == 'tanh' else 2 * (x / 255 - 0.5)
            shorter = min(x.shape[-2:])
            if shorter < SMALLEST:
                size = [round(side * SMALLEST / shorter) for side in x.shape[-2:]]
                x = F.interpolate(x, size, mode='bilinear', align_corners=False)
            for conv in (self.conv1, self.conv2, self.conv3):
                x = F.leaky_relu(conv(x), 0.1)
            x = F.leaky_relu(self.conv4(self.attention1(x)), 0.1)
            scores: Tensor = self.last(self.attention2(x)).mean((1, 2, 3))
            return scores


class SpectralConv2d(nn.Conv2d):
    r"""A convolution whose weight is divided by an estimate of its largest singular value.

    Every call takes one step of the power iteration, in evaluation as well, as in the
    authors' code:

    $$
    v \leftarrow W^\top u / \|W^\top u\|, \quad u \leftarrow W v / \|W v\|,
    \quad \sigma = u^\top W v
    $$

    ``torch.nn.utils.parametrizations.spectral_norm`` updates u before v and so yields other
    numbers; ``torch.nn.utils.spectral_norm`` has this order, but takes no step in evaluation,
    and leaves behind a weight with its graph, which ``copy.deepcopy`` and ``torch.save`` refuse.

    Takes the arguments of ``torch.nn.Conv2d``. The buffers ``weight_u`` and ``weight_v`` hold
    the two vectors.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> conv = SpectralConv2d(3, 8, 4)
        >>> with torch.no_grad():
        ...     for _ in range(200):
        ...         y = conv(torch.zeros(1, 3, 4, 4))
        >>> largest = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2)
        >>> torch.allclose(conv.weight_u @ conv.weight.flatten(1) @ conv.weight_v, largest)
        True
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        rows, columns = self.weight.flatten(1).shape
        self.register_buffer('weight_u', F.normalize(torch.randn(rows), dim=0))
        self.register_buffer('weight_v', F.normalize(torch.randn(columns), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.weight_u @ matrix, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            self.weight_u.copy_(u)
            self.weight_v.copy_(v)
        # Not the buffers: the next call overwrites them, perhaps before backward.
        sigma = u @ matrix @ v
        y: Tensor = self._conv_forward(x, self.weight / sigma, self.bias)
        return y


class SelfAttention(nn.Module):
    """Every position looks at all positions; ``gamma`` starts at 0, as if it were not there.

    Args:
        channels: Channels of the maps; queries and keys have an eighth of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        # The authors' keys have a bias, which the softmax cancels: an optimizer that scales
        # its steps, as Adam, would drive it by rounding errors.
        self.key = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def attention(self, x: Tensor) -> Tensor:
        """How much each position looks at each: ``(N, HW, HW)``, rows sum to 1."""
        queries, keys = self.query(x).flatten(2), self.key(x).flatten(2)
        attention: Tensor = (queries.mT @ keys).softmax(-1)
        return attention

    def forward(self, x: Tensor) -> Tensor:
        looked_at = self.value(x).flatten(2) @ self.attention(x).mT
        y: Tensor = self.gamma * looked_at.view_as(x) + x
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over the images of all processes.

    ``nn.SyncBatchNorm`` cannot be differentiated twice, as the gradient penalty needs, and
    does not run on CPUs.

    Args:
        channels: Channels of the maps.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer('running_mean', torch.zeros(channels))
        self.register_buffer('running_var', torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = _sum_over_ranks(x.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3]))
            mean = _sum_over_ranks(x.sum((0, 2, 3))) / count
            var = _sum_over_ranks((x - mean[:, None, None]).square().sum((0, 2, 3))) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), 0.1)
        scale = self.weight * (var + 1e-5).rsqrt()
        shift = self.bias - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def _sum_over_ranks(x: Tensor) -> Tensor:
    """Add up a tensor of the same shape over the processes, differentiably."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    total: Tensor = _AllReduce.apply(x)
    return total


class _AllReduce(torch.autograd.Function):
    """A sum over the processes; so is its gradient, and the gradient of that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _AllReduce.apply(grad)


def critic_loss(student: Tensor, teacher: Tensor, kind: CriticKind = 'wgan-gp') -> Tensor:
    r"""Tell the critic to score the teacher high and the student low.

    $$
    \text{wgan-gp: } \mathrm{mean}(s) - \mathrm{mean}(t), \qquad
    \text{hinge: } \mathrm{mean}(\max(0, 1 + s)) + \mathrm{mean}(\max(0, 1 - t))
    $$

    Args:
        student: Scores of the student's maps, of any shape.
        teacher: Scores of the teacher's maps.
        kind: ``'wgan-gp'`` is used together with [`gradient_penalty`][].

    Returns:
        Scalar.

    Raises:
        ValueError: If ``kind`` is unknown.

    Examples:
        >>> student, teacher = torch.tensor([0.5, -1.5]), torch.tensor([2.0, 0.0])
        >>> critic_loss(student, teacher)
        tensor(-1.5000)
        >>> critic_loss(student, teacher, kind='hinge')
        tensor(1.2500)
    """
    check_choice('critic_loss', 'kind', kind, CriticKind)
    if kind == 'hinge':
        return F.relu(1 - teacher).mean() + F.relu(1 + student).mean()
    return student.mean() - teacher.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    alpha: Tensor | None = None,
) -> Tensor:
    r"""Keep the critic's slope near 1 between the student's maps and the teacher's.

    With $x = \alpha t + (1 - \alpha) s$, one $\alpha$ per image, and the critic
    $f$:

    $$
    \frac{1}{N} \sum_n \bigl(\|\nabla_{x_n} f(x_n)\|_2 - 1\bigr)^2
    $$

    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017.

    Args:
        critic: Gives a score per image. It is the only one that a gradient flows into.
        student: Maps, ``(N, C, H, W)``.
        teacher: Same shape.
        alpha: ``(N, 1, 1, 1)``; drawn evenly from 0 to 1 if not given.

    Returns:
        Scalar.

    Examples:
        >>> maps = torch.zeros(2, 1, 1, 4)
        >>> gradient_penalty(lambda x: 1.5 * x.sum((1, 2, 3)), maps, maps)
        tensor(4.)
    """
    student, teacher = student.detach(), teacher.detach()
    if alpha is None:
        alpha = torch.rand(len(student), 1, 1, 1, device=student.device)
    x = (alpha * teacher + (1 - alpha) * student).requires_grad_()
    with without_autocast(x):
        (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    norm: Tensor = torch.linalg.vector_norm(grad.flatten(1), dim=1)
    return (norm - 1).square().mean()
