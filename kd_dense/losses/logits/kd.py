"""Knowledge distillation (KD), position by position.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
https://arxiv.org/abs/1503.02531

Logits may be standardised first: Sun et al., "Logit Standardization in Knowledge Distillation",
CVPR 2024, https://arxiv.org/abs/2403.01427 (its code has no licence; written from the formula).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_dense.functional import (
    Where,
    check_choice,
    check_temperature,
    check_where,
    mean_over_ranks,
    share_of_labels,
    soft_kl,
    two_class_logits,
)
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.logits.rows import Rows, labels_of, mean_of_valid, rows_of

__all__ = ['KDLoss', 'kd_loss']

Per = Literal['position', 'entry', 'image', 'map']


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor | None = None,
    temperature: float = 1.0,
    per: Per = 'position',
    temperature_squared: bool = True,
    standardise: bool = False,
    sigmoid: bool | None = None,
    ignore_index: int = 255,
    where: Where = 'all',
    edge: int = 7,
) -> Tensor:
    r"""Match the class distributions of student and teacher at every position.

    With the set V of the positions that have a label, or of all where no segmentation is given,

    $$
    \frac{T^2}{|V|} \sum_{v \in V} \mathrm{KL}\bigl(\sigma(t_v / T) \,\|\, \sigma(s_v / T)\bigr)
    $$

    Published code divides the same sum, over all positions, by different counts, so that
    weights do not carry over from one to another:

    | ``per`` | divided by | with ``temperature_squared`` | without it |
    |-|-|-|-|
    | ``position`` | \|V\|, as N H W | CIRKD, Af-DCD, mdistiller | torchdistill, standardised |
    | ``entry`` | \|V\| K | APD; mmrazor, ``mean`` | TorchDistiller, IFVD, AICSD |
    | ``image`` | N | mmrazor, ``batchmean`` | |
    | ``map`` | H W | | SKD (a sum over the batch, whatever its size) |

    A single channel is the logit $z$ of one class against none, which is two channels $(0, z)$:
    see [`kd_dense.functional.two_class_logits`][].

    Args:
        student: Logits, ``(N, K, H, W)``, or ``(R, K)`` as of regions, any float dtype.
        teacher: Same shape. No gradient flows into it.
        segmentation: Class of every pixel, ``(N, H', W')``, of any resolution, or ``(R,)``.
            Positions without a class are left out.
        temperature: $T > 0$, higher is softer.
        per: See the table.
        temperature_squared: Whether there is the factor $T^2$.
        standardise: Whether each row of logits loses its mean and is divided by its standard
            deviation first. What the logits' size says is gone then: the weight is larger
            (authors: T 2, weight 9).
        sigmoid: Whether each channel is a logit of its own, as in most dense detectors. The
            divergences of the channels of a position, each of two classes, are added up.
        ignore_index: A label that is no class.
        where: ``'edge'`` weighs each position by its share of pixels at the edge of a class,
            ``'body'`` by that of the others: see
            [`share_of_labels`][kd_dense.functional.labels.share_of_labels]. $|V|$ is the sum of
            these weights. It takes a segmentation ``(N, H', W')``.
        edge: Likewise.

    Returns:
        Scalar, at least float32, in nats; 0 where no position is left.

    Raises:
        ValueError: If the shapes differ, an argument is out of range, or ``standardise`` meets
            two classes or fewer.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> teacher = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        >>> kd_loss(student, teacher)
        tensor(0.1639)
        >>> kd_loss(student, teacher, torch.tensor([1, 255]))
        tensor(0.3278)
    """
    check_temperature(temperature)
    check_choice('kd_loss', 'per', per, Per)
    check_where('kd_loss', where, edge)
    rows = rows_of('kd_loss', student, teacher, standardise, sigmoid)
    valid = None
    if segmentation is not None:
        _, valid = labels_of('kd_loss', segmentation, rows, ignore_index)
    kl = kd_at(rows, temperature, sigmoid)
    if where != 'all':
        if segmentation is None or student.dim() != 4:
            raise ValueError(
                f'kd_loss with where={where!r} expects maps (N, K, H, W) and a segmentation'
            )
        share = share_of_labels(segmentation, student.shape[2:], where, edge, ignore_index)
        share = share.to(kl.dtype)
        count = mean_over_ranks(share.sum())
        kl, valid = kl * share * (share.numel() / count.where(count > 0, 1)), None
    if not temperature_squared:
        kl = kl / temperature**2
    if per in ('position', 'entry'):
        mean = mean_of_valid(kl, valid)
        return mean if per == 'position' else mean / rows.student.shape[1]
    total = (kl if valid is None else kl.where(valid, 0)).sum()
    return total / (max(len(student), 1) if per == 'image' else student.shape[2:].numel())


def kd_at(rows: Rows, temperature: float, sigmoid: bool | None = None) -> Tensor:
    """The divergence at each position, ``(N, H, W)``, times the square of the temperature."""
    if not sigmoid:
        return soft_kl(*rows, temperature, dim=1)
    student, teacher = (two_class_logits(x.flatten(0, 1)[:, None]) for x in rows)
    kl = soft_kl(student, teacher, temperature, dim=1)
    total: Tensor = kl.unflatten(0, rows.student.shape[:2]).sum(1)
    return total


class KDLoss(DistillLoss):
    """Module form of [`kd_loss`][], times ``weight``.

    Args:
        weight: Factor on the result. CIRKD's is 1, with temperature 1.
        temperature: See [`kd_loss`][], as the other arguments.
        valid_only: Whether pixels without a label are left out, which takes label maps. None of
            the published forms leaves them out.

    Examples:
        >>> import torch
        >>> loss = KDLoss(weight=2.0, temperature=4.0)
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> segmentation = torch.randint(19, (2, 64, 64))
        >>> loss(student, torch.randn(2, 19, 8, 8), segmentation=segmentation).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    needs: tuple[str, ...] = ('segmentation',)

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        per: Per = 'position',
        temperature_squared: bool = True,
        standardise: bool = False,
        valid_only: bool = True,
        sigmoid: bool | None = None,
        ignore_index: int = 255,
        where: Where = 'all',
        edge: int = 7,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_choice('KDLoss', 'per', per, Per)
        self.temperature = temperature
        self.per: Per = per
        self.divides_by_images = per == 'image'
        self.temperature_squared = temperature_squared
        self.standardise = standardise
        check_where('KDLoss', where, edge)
        if not valid_only:
            if where != 'all':
                raise ValueError(
                    f'KDLoss with where={where!r} takes label maps: expected valid_only=True'
                )
            self.needs = ()
        self.where: Where = where
        self.edge = edge
        self.sigmoid = sigmoid
        self.ignore_index = ignore_index

    def forward(
        self, student: Tensor, teacher: Tensor, segmentation: Tensor | None = None
    ) -> Tensor:
        return self.weight * kd_loss(
            student,
            teacher,
            segmentation,
            self.temperature,
            self.per,
            self.temperature_squared,
            self.standardise,
            self.sigmoid,
            self.ignore_index,
            self.where,
            self.edge,
        )
