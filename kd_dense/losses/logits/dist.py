"""DIST: relations between the classes of a position, and between the positions of a class.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
https://arxiv.org/abs/2205.10536

Source: hunto/DIST_KD and, for detectors, hunto/MasKD; both Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_dense.functional import check_temperature, mean_over_ranks, softened, sum_over_ranks
from kd_dense.losses.base import DistillLoss, check_weights
from kd_dense.losses.logits.rows import map_blocks, rows_of

__all__ = ['DISTLoss', 'dist_loss']

EPS = 1e-8


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    per_image: bool = False,
    standardise: bool = False,
    sigmoid: bool | None = None,
) -> Tensor:
    r"""Let the student's probabilities correlate with the teacher's, in two directions.

    With the probabilities $p = \sigma(s / T)$ and $q = \sigma(t / T)$ and Pearson's correlation
    $\rho$,

    $$
    T^2 \Bigl[\beta \Bigl(1 - \frac{1}{N H W} \sum_{n, i} \rho(p_{n, :, i}, q_{n, :, i})\Bigr)
    + \gamma \Bigl(1 - \frac{1}{K} \sum_k \rho(p_{:, k, :}, q_{:, k, :})\Bigr)\Bigr]
    $$

    The first part compares how a position ranks its classes, the second where in the batch a
    class is more likely and where less; that batch is the one of all processes together. Sizes
    and shifts of the probabilities are free, which a divergence would draw to the teacher's.

    A single channel is the logit $z$ of one class against none, which is two channels $(0, z)$.
    Two probabilities always correlate with 1 or -1, so that of binary heads the second part alone
    teaches something.

    Args:
        student: Logits, ``(N, K, H, W)``, or ``(R, K)`` as of regions, any float dtype.
        teacher: Same shape. No gradient flows into it.
        inter: $\beta$, the weight of the relations between classes.
        intra: $\gamma$, the weight of the relations between positions.
        temperature: $T > 0$, higher is softer. For segmentation the authors have none, which is
            1.
        temperature_squared: Whether there is the factor $T^2$.
        per_image: Whether the second part correlates within each image, and is averaged over
            the images, as a variant in ZaberKo/seg-gdkd (Apache-2.0) does.
        standardise: Whether each row of logits loses its mean and is divided by its standard
            deviation first.
        sigmoid: Whether each channel is a logit of its own, and its probability its sigmoid, as
            the authors have it for dense detectors. All channels of a position are one row then:
            those of all its anchors.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes differ, an argument is out of range, or ``standardise`` meets
            two classes or fewer.

    Examples:
        >>> student = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
        >>> dist_loss(student, 2 * student, intra=0.0).round(decimals=4)
        tensor(0.0070)
        >>> dist_loss(student, student.flip(0), inter=0.0).round(decimals=4)
        tensor(2.)
    """
    check_temperature(temperature)
    rows = rows_of('dist_loss', student, teacher, standardise, sigmoid)
    p, q = (probabilities(x, temperature, sigmoid) for x in rows)
    p, q = (x.flatten(2) for x in (p, q.to(p.dtype)))
    positions, columns = moments(p, q, per_image)
    between, within = (1 - correlation(x) for x in (positions, columns))
    if student.dim() == 2:  # another number in each process, and there may be none
        count = mean_over_ranks(p.new_full((), p.shape[2]))
        some = count > 0
        loss = inter * between.sum() / count.where(some, 1) + intra * within.mean() * some
    else:
        loss = inter * between.mean() + intra * within.mean()
    return loss * temperature**2 if temperature_squared else loss


def probabilities(logits: Tensor, temperature: float, sigmoid: bool | None) -> Tensor:
    """Softmax over the classes, or sigmoid, of logits divided by a temperature."""
    logits = softened(logits, temperature)
    return logits.sigmoid() if sigmoid else logits.softmax(1)


def moments(p: Tensor, q: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """Products of centred probabilities, added up over the classes and over the positions.

    Args:
        p: ``(N, K, P)``.
        q: Same shape.
        per_image: Whether the positions are those of an image, rather than of the batch.

    Returns:
        ``(N, 3, P)`` and ``(N or 1, 3, K)``: of p with p, of p with q, of q with q.
    """
    sums = torch.stack([p.detach().sum(2), q.sum(2)], 1)
    if per_image:
        means = sums / p.shape[2]
    else:
        count = sums.new_full((1,), len(p) * p.shape[2])
        # One exchange between the processes for the sums and for the count.
        total = sum_over_ranks(torch.cat([sums.sum(0).flatten(), count]))
        means = (total[:-1] / total[-1].clamp(min=1)).view(sums.shape[1:]).expand_as(sums)
    positions, columns = _Moments.apply(p, q, means)
    return positions, columns if per_image else sum_over_ranks(columns.sum(0, keepdim=True))


def correlation(moments: Tensor) -> Tensor:
    """Pearson's correlation of moments ``(N, 3, n)``; 0 where one of the two is constant."""
    pp, pq, qq = moments.unbind(1)
    varies = pp > 0  # a root has no slope at 0
    norm = pp.where(varies, 1).sqrt().where(varies, 0)
    return pq / (norm * qq.sqrt() + EPS)


class _Moments(torch.autograd.Function):
    """What [`moments`][] says, around given means ``(N, 2, K)`` of p and q.

    The gradient takes all means for constants, because centred values add up to 0.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        images, classes, count = p.shape
        positions = p.new_empty(images, 3, count)
        columns = p.new_zeros(images, 3, classes)
        for x, y, at, mean, of in _blocks((p, q, positions), (means, columns)):
            at.copy_(_products(*_centred(x, y), dim=1))
            of += _products(*_centred(x, y, mean), dim=2)[..., None]
        ctx.save_for_backward(p, q, means)
        return positions, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at: Tensor, of: Tensor) -> tuple[Tensor | None, ...]:
        p, q, means = ctx.saved_tensors
        grad = torch.empty_like(p)
        # Of the squares of p, and its products with q.
        at, of = (torch.stack([2 * x[:, 0], x[:, 1]], 1) for x in (at, of))
        maps, columns = (p, q, grad, at), (means, of)
        for x, y, out, to_position, mean, to_class in _blocks(maps, columns):
            ours, theirs = _centred(x, y)
            torch.mul(ours, to_position[:, :1], out=out).addcmul_(theirs, to_position[:, 1:])
            ours, theirs = _centred(x, y, mean)
            out.addcmul_(ours, to_class[:, 0]).addcmul_(theirs, to_class[:, 1])
        return grad, None, None


def _blocks(maps: Sequence[Tensor], columns: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of maps ``(N, any, P)``; and the ``(N, any, K, 1)`` of their images, as views."""
    positions, classes = maps[0].shape[2], maps[0].shape[1]
    wide = [x.flatten(1)[..., None].expand(-1, -1, positions) for x in columns]
    for block in map_blocks(*maps, *wide, classes=classes, dtype=maps[0].dtype):
        of = (x[..., :1].unflatten(1, (-1, classes)) for x in block[len(maps) :])
        yield *block[: len(maps)], *of


def _centred(p: Tensor, q: Tensor, means: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities around the means of their positions, or around those given of the classes."""
    if means is None:
        return p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
    return p - means[:, 0], q - means[:, 1]


def _products(p: Tensor, q: Tensor, dim: int) -> Tensor:
    """Of p with p, p with q, q with q, added up over a dimension: the other one behind a 3."""
    return torch.stack([(x * y).sum(dim) for x, y in ((p, p), (p, q), (q, q))], 1)


class DISTLoss(DistillLoss):
    """Module form of [`dist_loss`][], times ``weight``.

    The authors' weight is 1, and 0.4 on the logits of an auxiliary head.

    Args:
        weight: Factor on the result.
        inter: See [`dist_loss`][], as the other arguments.

    Examples:
        >>> loss = DISTLoss(weight=0.4)
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 19, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: float = 1.0,
        temperature_squared: bool = True,
        per_image: bool = False,
        standardise: bool = False,
        sigmoid: bool | None = None,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_weights('DISTLoss', inter=inter, intra=intra)
        self.inter = inter
        self.intra = intra
        self.temperature = temperature
        self.temperature_squared = temperature_squared
        self.per_image = per_image
        self.standardise = standardise
        self.sigmoid = sigmoid

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * dist_loss(
            student,
            teacher,
            self.inter,
            self.intra,
            self.temperature,
            self.temperature_squared,
            self.per_image,
            self.standardise,
            self.sigmoid,
        )
