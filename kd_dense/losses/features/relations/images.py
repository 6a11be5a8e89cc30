"""Relations of the images of a batch, whatever these are like: distances, angles, probabilities.

Park et al., "Relational Knowledge Distillation", CVPR 2019. https://arxiv.org/abs/1904.05068

Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
ECCV 2018. https://arxiv.org/abs/1803.10837

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.
https://arxiv.org/abs/1904.01802

RKD equals MMRazor (Apache-2.0), PKT RepDistiller (BSD-2-Clause) and CCKD torchdistill (MIT).
"""

from __future__ import annotations

from math import exp, factorial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import check_choice, unit, without_autocast
from kd_dense.losses.base import DistillLoss, check_counts, check_same_size, check_weights
from kd_dense.losses.features.relations.rows import image_gram, pooled

__all__ = ['CCKDLoss', 'PKTLoss', 'RKDLoss', 'cckd_loss', 'pkt_loss', 'rkd_loss']

Kernel = Literal['gaussian', 'bilinear']
PKT_EPS = 1e-7
LEAST_SQUARE = 1e-12


def rkd_loss(
    student: Tensor, teacher: Tensor, pool: int = 1, over_norm: bool = True
) -> dict[str, Tensor]:
    r"""Compare distances of pairs of images, and angles of triples.

    With the maps of all images of a batch as vectors $x_i$, and Huber's $\rho$ (smooth L1),

    $$
    \frac{1}{B^2} \sum_{i, j} \rho(d^s_{ij} - d^t_{ij}), \qquad
    d_{ij} = \frac{\lVert x_i - x_j \rVert}{\mu}
    $$

    with $\mu$ for the mean distance of two images, and

    $$
    \frac{1}{B^3} \sum_{i, j, k} \rho(a^s_{ijk} - a^t_{ijk}), \qquad
    a_{ijk} = \cos \angle (x_j - x_i, x_k - x_i)
    $$

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype, as many images in all processes.
        teacher: Same N, H and W. No gradient flows into it.
        pool: Side of squares that the maps are averaged over first.
        over_norm: Whether each vector is divided by its 2-norm first, as MMRazor does it.

    Returns:
        ``distance`` and ``angle``: scalars, at least float32. Of the batch of all processes, which
        must have three images: of two, and of one, both are 0.

    Raises:
        ValueError: If the shapes do not fit, or ``pool`` is no side.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0]]).view(2, 3, 1, 1, 1)
        >>> parts = rkd_loss(student, teacher, over_norm=False)
        >>> {name: round(float(value), 4) for name, value in parts.items()}
        {'distance': 0.0556, 'angle': 0.0}
    """
    check_same_size('rkd_loss', student, teacher)
    check_counts('rkd_loss', pool=pool)
    with without_autocast(student):
        images = [pooled(x, pool).flatten(1) for x in (student, teacher.detach())]
        if over_norm:
            images = [unit(x) for x in images]
        ours, theirs = (_distances_and_angles(image_gram(x, centre=True)) for x in images)
        distance, angle = (
            F.smooth_l1_loss(s, t.to(s.dtype)) for s, t in zip(ours, theirs, strict=True)
        )
    return dict(distance=distance, angle=angle)


def _distances_and_angles(gram: Tensor) -> tuple[Tensor, Tensor]:
    """From the products of images, ``(B, B)`` and ``(B, B, B)``."""
    count = len(gram)
    squares = gram.diagonal()
    self_pairs = torch.eye(count, dtype=torch.bool, device=gram.device)
    apart = squares[:, None] + squares - 2 * gram
    distance = apart.clamp(min=LEAST_SQUARE).sqrt().masked_fill(self_pairs, 0)
    mean = distance.sum() / max(count * (count - 1), 1)
    normed = distance / mean.where(mean > 0, 1)
    # (x_j - x_i) (x_k - x_i), each over its length
    products = gram - gram[:, :, None] - gram[:, None] + squares[:, None, None]
    varies = apart > LEAST_SQUARE
    inverse = apart.where(varies, 1).rsqrt().where(varies & ~self_pairs, 0)
    return normed, products * inverse[:, :, None] * inverse[:, None]


def pkt_loss(student: Tensor, teacher: Tensor, pool: int = 1) -> Tensor:
    r"""Compare how likely each image takes another one for its like.

    With the cosines $c_{ij}$ of the maps of all images of a batch,

    $$
    \frac{1}{B^2} \sum_{i, j} q_{ij} \log \frac{q_{ij} + \epsilon}{p_{ij} + \epsilon}, \qquad
    p_{ij} = \frac{c^s_{ij} + 1}{\sum_k (c^s_{ik} + 1)}, \quad \epsilon = 10^{-7}
    $$

    and q as p, of the teacher.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype, as many images in all processes.
        teacher: Same N, H and W. No gradient flows into it.
        pool: Side of squares that the maps are averaged over first.

    Returns:
        Scalar, at least float32, in nats. Of the batch of all processes; with one image it is 0.

    Raises:
        ValueError: If the shapes do not fit, or ``pool`` is no side.

    Examples:
        >>> student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> pkt_loss(student[..., None, None], teacher[..., None, None]).round(decimals=4)
        tensor(0.2027)
    """
    check_same_size('pkt_loss', student, teacher)
    check_counts('pkt_loss', pool=pool)
    with without_autocast(student):
        p, q = (
            _likely(image_gram(pooled(x, pool).flatten(1))) for x in (student, teacher.detach())
        )
        q = q.to(p.dtype)
        return (q * ((q + PKT_EPS) / (p + PKT_EPS)).log()).mean()


def _likely(gram: Tensor) -> Tensor:
    squares = gram.diagonal()
    varies = squares > 0
    norm = squares.where(varies, 1).sqrt().where(varies, 0) + PKT_EPS
    like = (gram / norm / norm[:, None] + 1) / 2
    return like / like.sum(1, keepdim=True)


def cckd_loss(
    student: Tensor,
    teacher: Tensor,
    kernel: Kernel = 'gaussian',
    gamma: float = 0.4,
    order: int = 2,
    pool: int = 1,
) -> Tensor:
    r"""Compare the correlation of pairs of images.

    With the maps of all images of a batch as vectors $x_i$,

    $$
    \frac{1}{B^2} \Bigl(\sum_{i, j} \bigl(k(x^s_i, x^s_j) - k(x^t_i, x^t_j)\bigr)^2\Bigr)^{1/2}
    $$

    | ``kernel`` | $k(x, y)$ |
    |-|-|
    | ``gaussian`` | $e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} (x^\top y)^p$ |
    | ``bilinear`` | $x^\top y$ |

    The first is the Taylor series of a Gaussian, if the vectors are of length 1. As in
    torchdistill, they are taken as they come.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype, as many images in all processes.
        teacher: Same N, H and W. No gradient flows into it.
        kernel: See the table.
        gamma: $\gamma > 0$.
        order: P, 1 or more.
        pool: Side of squares that the maps are averaged over first.

    Returns:
        Scalar, at least float32. Of the batch of all processes.

    Raises:
        ValueError: If the shapes do not fit, or an argument is out of range.

    Examples:
        >>> student, teacher = (x.view(2, 1, 1, 1) for x in torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> cckd_loss(student, teacher, 'bilinear').round(decimals=4)
        tensor(0.4330)
    """
    check_same_size('cckd_loss', student, teacher)
    _check_kernel('cckd_loss', kernel, gamma, order)
    check_counts('cckd_loss', pool=pool)
    with without_autocast(student):
        ours, theirs = (
            _kernel(image_gram(pooled(x, pool).flatten(1)), kernel, gamma, order)
            for x in (student, teacher.detach())
        )
        apart = ours - theirs.to(ours.dtype)
        # Over the largest, so that the squares of large numbers are numbers, and without a slope
        # where all are 0.
        largest = apart.detach().abs().amax()
        largest = largest.where(largest > 0, 1)
        squares = (apart / largest).square().sum()
        norm = squares / squares.where(squares > 0, 1).sqrt()
        return norm * (largest / apart.numel())


def _kernel(gram: Tensor, kernel: Kernel, gamma: float, order: int) -> Tensor:
    if kernel == 'bilinear':
        return gram
    factors = [exp(-2 * gamma) * (2 * gamma) ** p / factorial(p) for p in range(order + 1)]
    value = torch.zeros_like(gram)
    for factor in reversed(factors):
        value = value * gram + factor
    return value


def _check_kernel(owner: str, kernel: str, gamma: float, order: int) -> None:
    check_choice(owner, 'kernel', kernel, Kernel)
    if not 0 < gamma < float('inf'):
        raise ValueError(f'{owner} expects a finite gamma > 0, got gamma={gamma!r}')
    check_counts(owner, order=order)


class _OfImages(DistillLoss):
    any_channels = True
    least_images = 2

    def __init__(self, weight: float = 1.0, pool: int = 1) -> None:
        super().__init__(weight)
        check_counts(type(self).__name__, pool=pool)
        self.pool = pool


class RKDLoss(_OfImages):
    """Module form of [`rkd_loss`][], times ``weight``, and each part times its own weight.

    The authors' weights are 25 and 50.

    Args:
        weight: Factor on both parts.
        distance_weight: Factor on the distances.
        angle_weight: Factor on the angles.
        pool: See [`rkd_loss`][], as ``over_norm``.

    Examples:
        >>> loss = RKDLoss()
        >>> student = torch.randn(4, 16, 8, 8, requires_grad=True)
        >>> sum(loss(student, torch.randn(4, 64, 8, 8)).values()).backward()
        >>> student.grad.shape
        torch.Size([4, 16, 8, 8])
    """

    parts = ('distance', 'angle')
    least_images = 3

    def __init__(
        self,
        weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        pool: int = 1,
        over_norm: bool = True,
    ) -> None:
        super().__init__(weight, pool)
        check_weights('RKDLoss', distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.over_norm = over_norm

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        found = rkd_loss(student, teacher, self.pool, self.over_norm)
        return {
            'distance': self.weight * self.distance_weight * found['distance'],
            'angle': self.weight * self.angle_weight * found['angle'],
        }


class PKTLoss(_OfImages):
    """Module form of [`pkt_loss`][], times ``weight``.

    The authors' weight is 30000.

    Args:
        weight: Factor on the result.
        pool: See [`pkt_loss`][].

    Examples:
        >>> loss = PKTLoss(weight=30000.0)
        >>> student = torch.randn(4, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(4, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([4, 16, 8, 8])
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * pkt_loss(student, teacher, self.pool)


class CCKDLoss(_OfImages):
    """Module form of [`cckd_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        kernel: See [`cckd_loss`][], as the other arguments.

    Examples:
        >>> loss = CCKDLoss(kernel='bilinear')
        >>> student = torch.randn(4, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(4, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([4, 16, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        kernel: Kernel = 'gaussian',
        gamma: float = 0.4,
        order: int = 2,
        pool: int = 1,
    ) -> None:
        super().__init__(weight, pool)
        _check_kernel('CCKDLoss', kernel, gamma, order)
        self.kernel: Kernel = kernel
        self.gamma = gamma
        self.order = order

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * cckd_loss(
            student, teacher, self.kernel, self.gamma, self.order, self.pool
        )
