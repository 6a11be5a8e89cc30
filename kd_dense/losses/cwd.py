"""Channel-wise knowledge distillation (CWD).

Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021.
https://arxiv.org/abs/2011.13256
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kd_dense.functional import (
    NO_LOGIT,
    Where,
    at_least_float32,
    check_choice,
    check_temperature,
    check_where,
    divide_over_ranks,
    share_of_labels,
    soft_kl,
    soft_kl_total,
    standardised,
    two_class_logits,
)
from kd_dense.losses.base import DistillLoss, check_same_shape

__all__ = ['CWDLoss', 'cwd_loss']

Norm = Literal['channel', 'spatial', 'channel_mean', 'none']
Divergence = Literal['kl', 'mse']


def cwd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    norm: Norm = 'channel',
    divergence: Divergence = 'kl',
    first_image_only: bool = False,
    standardise: bool = False,
    positions: Tensor | None = None,
) -> Tensor:
    r"""Match, channel by channel, where student and teacher put their activation.

    With the default arguments each channel is softened into a distribution over the
    $H W$ positions, and the distributions of teacher and student are compared:

    $$
    \frac{T^2}{N C} \sum_{n, c} \mathrm{KL}\bigl(
        \sigma(t_{n, c} / T) \,\|\, \sigma(s_{n, c} / T)\bigr)
    $$

    The other arguments are the variants of the authors' code:

    | ``norm`` | what is compared | divided by | divergences |
    |-|-|-|-|
    | ``channel`` | softmax over the positions | N C | ``kl``, ``mse`` |
    | ``spatial`` | softmax over the channels | N H W | ``kl``, ``mse`` |
    | ``channel_mean`` | mean over the positions | N C | ``kl``, ``mse`` |
    | ``none`` | the maps themselves | N H W | ``mse`` |

    ``kl`` is multiplied by $T^2$; ``mse`` sums squared differences and takes no
    temperature. ``spatial`` takes a single channel for the logit $z$ of one class against none,
    which is two channels $(0, z)$: see [`kd_dense.functional.two_class_logits`][].
    ``channel_mean`` with ``kl`` treats raw means as if they were
    probabilities: it is defined for positive means only and may be negative.

    Args:
        student: Activations or logits, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        temperature: $T > 0$, higher is softer. The authors take 4. Without effect
            where ``divergence='mse'``.
        norm: See the table.
        divergence: ``'kl'`` or ``'mse'``.
        first_image_only: Reproduce a slip of the authors' code, which with ``norm='none'``
            reads the first image of the batch alone and still divides by N H W.
        standardise: Subtract from each channel of both maps its mean over the batch and the
            positions, and divide by the standard deviation, as a batch norm does that has no
            parameters: $(x - \mu) / \sqrt{v + 10^{-5}}$ with the biased variance. This is what
            MMRazor's recipe for RTMDet does.
        positions: How much each position counts, ``(N, H, W)``, ``>= 0``: as one that many
            positions like it would. It goes with ``'kl'`` of ``'channel'``, where each
            distribution is over the positions that count, and of ``'spatial'``, a mean over
            them.

    Returns:
        Scalar, at least float32; for ``kl`` in nats.

    Raises:
        ValueError: If the shapes differ, the temperature is not positive, or the
            combination is not in the table.

    Examples:
        >>> import torch
        >>> maps = torch.arange(4.0).view(1, 1, 2, 2)
        >>> cwd_loss(maps, maps + 7.0)
        tensor(0.)
        >>> cwd_loss(maps, maps.flip(-1), temperature=2.0)
        tensor(0.4898)
    """
    check_same_shape('cwd_loss', student, teacher)
    check_temperature(temperature)
    _check_variant('cwd_loss', norm, divergence, first_image_only, standardise)
    if positions is not None:
        _check_positions('cwd_loss', norm, divergence)
    teacher = teacher.detach()
    if standardise:
        student, teacher = _batch_normed(student), _batch_normed(teacher)
    images, channels, height, width = student.shape
    per_position = norm in ('spatial', 'none')
    count = images * (height * width if per_position else channels)

    if norm == 'channel':
        student, teacher, dim = student.flatten(2), teacher.flatten(2), 2
    else:
        dim = 1
    if norm == 'spatial':
        student, teacher = two_class_logits(student), two_class_logits(teacher)
    if positions is not None:
        return _where_it_counts(student, teacher, positions, temperature, norm)
    if divergence == 'kl' and norm != 'channel_mean':
        return soft_kl_total([student], [teacher], temperature, dim, 1 / count)

    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if norm == 'channel_mean':
        student, teacher = student.mean((2, 3)), teacher.mean((2, 3))
    if first_image_only:
        student, teacher = student[:1], teacher[:1]
    if divergence == 'kl':
        # The temperature cancels in the quotient: (t/T) log((t/T) / (s/T)).
        return temperature * (teacher * (teacher.log() - student.log())).sum() / count
    if norm in ('channel', 'spatial'):
        student, teacher = student.softmax(dim), teacher.softmax(dim)
    return (student - teacher).square().sum() / count


def _where_it_counts(
    student: Tensor, teacher: Tensor, positions: Tensor, temperature: float, norm: Norm
) -> Tensor:
    if norm == 'spatial':
        kl = soft_kl(student, teacher, temperature, dim=1)
        positions = positions.to(kl.dtype)
        return divide_over_ranks((kl * positions).sum(), positions.sum())
    counted = positions.flatten(1)[:, None].to(at_least_float32(student[:0]).dtype)
    # A factor on what a softmax adds up; what does not count is as good as not there.
    shift = torch.where(counted > 0, counted.log() * temperature, NO_LOGIT)
    any_counts = (counted > 0).any(2, keepdim=True)
    shift = torch.where(any_counts, shift, 0)
    kl = soft_kl(student + shift, teacher + shift, temperature, dim=2)
    return (kl * any_counts[..., 0]).mean()


def _batch_normed(x: Tensor) -> Tensor:
    return standardised(x, (0, 2, 3), eps=1e-5, unbiased=False, eps_on='variance')


def _check_positions(owner: str, norm: str, divergence: str) -> None:
    if divergence != 'kl' or norm not in ('channel', 'spatial'):
        raise ValueError(
            f"{owner} tells positions apart with divergence='kl' and norm='channel' or 'spatial', "
            f'got {divergence!r} and {norm!r}'
        )


def _check_variant(
    owner: str, norm: str, divergence: str, first_image_only: bool, standardise: bool
) -> None:
    check_choice(owner, 'norm', norm, Norm)
    check_choice(owner, 'divergence', divergence, Divergence)
    if norm == 'none' and divergence == 'kl':
        raise ValueError(
            f"{owner} with norm='none' compares maps that are no distributions: "
            "expected divergence='mse', got 'kl'"
        )
    if standardise and norm == 'channel_mean' and divergence == 'kl':
        raise ValueError(
            f"{owner} with norm='channel_mean' takes the logarithm of means, which are negative "
            "with standardise=True: expected divergence='mse', got 'kl'"
        )
    if first_image_only and norm != 'none':
        raise ValueError(f"{owner}: first_image_only belongs to norm='none', got norm={norm!r}")


class CWDLoss(DistillLoss):
    """Module form of [`cwd_loss`][], times ``weight``.

    The authors' setting for the logits of a segmenter is ``temperature=4, weight=3``.

    Args:
        weight: Factor on the result.
        temperature: See [`cwd_loss`][], as the other arguments.
        where: ``'edge'`` and ``'body'`` count the pixels at the edges of classes, or the others:
            see [`share_of_labels`][kd_dense.functional.labels.share_of_labels].
        edge: Likewise.
        ignore_index: Likewise.

    Examples:
        >>> import torch
        >>> loss = CWDLoss(weight=3.0, temperature=4.0)
        >>> student = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 19, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 19, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        norm: Norm = 'channel',
        divergence: Divergence = 'kl',
        first_image_only: bool = False,
        standardise: bool = False,
        where: Where = 'all',
        edge: int = 7,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        _check_variant('CWDLoss', norm, divergence, first_image_only, standardise)
        self.temperature = temperature
        self.norm: Norm = norm
        self.divergence: Divergence = divergence
        self.first_image_only = first_image_only
        self.standardise = standardise
        check_where('CWDLoss', where, edge)
        if where != 'all':
            _check_positions('CWDLoss', norm, divergence)
            self.needs = ('segmentation',)
        self.where: Where = where
        self.edge = edge
        self.ignore_index = ignore_index

    def forward(
        self, student: Tensor, teacher: Tensor, segmentation: Tensor | None = None
    ) -> Tensor:
        positions = None
        if segmentation is not None:
            positions = share_of_labels(
                segmentation, student.shape[2:], self.where, self.edge, self.ignore_index
            )
        return self.weight * cwd_loss(
            student,
            teacher,
            self.temperature,
            self.norm,
            self.divergence,
            self.first_image_only,
            self.standardise,
            positions,
        )

    @classmethod
    def over_maps(
        cls,
        losses: Sequence[CWDLoss],
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        **needs: Any,
    ) -> Tensor:
        loss = losses[0]
        widths = {x.shape[:2] for x in students}
        plain = loss.norm == 'channel' and loss.divergence == 'kl' and not needs
        if not plain or len(widths) > 1:
            found: Tensor = super().over_maps(losses, students, teachers, **needs)
            return found
        for student, teacher in zip(students, teachers, strict=True):
            check_same_shape('cwd_loss', student, teacher)
        if loss.standardise:
            students, teachers = (
                [_batch_normed(x) for x in maps] for maps in (students, teachers)
            )
        ours, theirs = ([x.flatten(2) for x in maps] for maps in (students, teachers))
        count = widths.pop().numel()
        return soft_kl_total(ours, theirs, loss.temperature, 2, loss.weight / count)
