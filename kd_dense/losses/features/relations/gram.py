"""Relations as products: of channels, of classes, of positions, or of images.

Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
https://arxiv.org/abs/1907.09682

Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
ICCV 2021. https://arxiv.org/abs/2202.03680

SP equals RepDistiller (BSD-2-Clause), ICKD torchdistill (MIT) and TaT-seg (BSD-2-Clause). ICKD's
own code, CIRKD, which has DSD, and AICSD have no licence: the formulas alone were taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from kd_dense.functional import check_choice, check_temperature, unit, without_autocast
from kd_dense.losses.base import DistillLoss, check_counts, check_same_shape, check_same_size
from kd_dense.losses.features.relations.rows import (
    image_gram,
    pooled,
    products,
    sum_over_rows,
    vectors_of,
)

__all__ = ['ICKDLoss', 'RelationLoss', 'SPLoss', 'Settings', 'affinities', 'relation_loss']

Over = Literal['channels', 'positions', 'images']
Values = Literal['plain', 'unit', 'classes', 'places']
Rows = Literal['none', 'l2', 'l1']
Reduction = Literal['row', 'mean']


class Settings(NamedTuple):
    """The arguments of [`relation_loss`][] beside the maps."""

    over: Over = 'channels'
    rows: Rows = 'l2'
    reduction: Reduction = 'row'
    values: Values = 'plain'
    temperature: float = 1.0
    pool: int = 1
    windows: Sequence[int] = (1, 1)


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    over: Over = 'channels',
    rows: Rows = 'l2',
    reduction: Reduction = 'row',
    values: Values = 'plain',
    temperature: float = 1.0,
    pool: int = 1,
    windows: Sequence[int] = (1, 1),
) -> Tensor:
    r"""Compare how vectors of the student relate to each other with how those of the teacher do.

    With the n vectors $v_i$ of ``over``,

    $$
    \frac{1}{Z} \sum_{i, j} \bigl(\nu(A^s)_{ij} - \nu(A^t)_{ij}\bigr)^2,
    \qquad A_{ij} = v_i^\top v_j
    $$

    | ``over`` | the vectors | n | of one matrix |
    |-|-|-|-|
    | ``channels`` | a channel at all positions | C | each image, or window |
    | ``positions`` | a position in all channels | H W | each image, or window |
    | ``images`` | the whole map of an image | N | the batch of all processes |

    | ``values`` | of the map, first |
    |-|-|
    | ``plain`` | nothing |
    | ``unit`` | each vector over its 2-norm, so that A are cosines |
    | ``classes`` | a softmax over the channels at each position |
    | ``places`` | a softmax over the positions of each channel |

    $\nu$ divides each row of A by its 2-norm, or its 1-norm. Z is n for ``reduction='row'``, $n^2$
    for ``'mean'``; the result is the mean over images and windows.

    | published as | ``over`` | ``rows`` | ``reduction`` | and |
    |-|-|-|-|-|
    | ICKD; AICSD's classes, on logits | ``channels`` | ``l2`` | ``row`` | |
    | SP | ``images`` | ``l2`` | ``mean`` | |
    | DSD's channels | ``channels`` | ``none`` | ``mean`` | ``places``, T = 4, ``pool=2`` |
    | batch correlation, on logits | ``images`` | ``none`` | ``row`` | ``classes``, T = 4 |
    | class correlation, on logits | ``channels`` | ``none`` | ``row`` | ``classes``, T = 4 |

    Args:
        student: Features or logits, ``(N, C, H, W)``, any float dtype.
        teacher: Same N, H and W, and over channels the same C. No gradient flows into it.
        over: See the table.
        rows: ``'l2'``, ``'l1'`` or ``'none'``. A row that is 0 stays 0.
        reduction: See above.
        values: See the table.
        temperature: The maps are divided by it in front of a softmax, ``> 0``.
        pool: Side of squares that the maps are averaged over first.
        windows: Into how many windows a map is cut, down and across, each with a matrix of its
            own; at most one for each position. Rows and columns that are left over are left out.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes do not fit, or an argument is out of range.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(1, 2, 1, 2)
        >>> relation_loss(student, teacher).round(decimals=4)
        tensor(0.5858)
    """
    settings = Settings(over, rows, reduction, values, temperature, pool, windows)
    (check_same_shape if over == 'channels' else check_same_size)(
        'relation_loss', student, teacher
    )
    _check('relation_loss', settings)
    with without_autocast(student):
        ours, theirs = (_vectors(x, settings) for x in (student, teacher.detach()))
        theirs = theirs.to(ours.dtype)
        if over == 'images':
            ours, theirs = (image_gram(x.squeeze(0))[None] for x in (ours, theirs))
            total = _apart(ours, theirs, rows)
        else:
            total = sum_over_rows(
                lambda s, t: _apart(products(s[0], t[0]), products(s[1], t[1]), rows),
                [ours, theirs],
                [ours, theirs],
            )
        count = ours.shape[1]
        return total.mean() / (count if reduction == 'row' else count**2)


def affinities(x: Tensor, settings: Settings) -> Tensor:
    """The matrices of a map ``(N, C, H, W)`` as they are compared, ``(G, n, n)``, whole."""
    vectors = _vectors(x, settings)
    return _over_norm(products(vectors, vectors), settings.rows)


def _vectors(x: Tensor, settings: Settings) -> Tensor:
    x = pooled(x, settings.pool)
    if settings.temperature != 1:
        x = x / settings.temperature
    if settings.values == 'classes':
        x = x.softmax(1)
    elif settings.values == 'places':
        x = x.flatten(2).softmax(2).view_as(x)
    if tuple(settings.windows) != (1, 1):
        x = _windows(x, settings.windows)
    x = vectors_of(x, settings.over)
    return unit(x) if settings.values == 'unit' else x


def _windows(x: Tensor, windows: Sequence[int]) -> Tensor:
    """Each window of a map ``(N, C, H, W)`` for an image."""
    down, across = (min(pair) for pair in zip(x.shape[2:], windows, strict=True))
    height, width = x.shape[2] // down, x.shape[3] // across
    x = x[..., : down * height, : across * width]
    x = x.unflatten(3, (across, width)).unflatten(2, (down, height))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _apart(ours: Tensor, theirs: Tensor, rows: Rows) -> Tensor:
    """Squared differences of rows ``(G, m, n)``, added up in each group."""
    return (_over_norm(ours, rows) - _over_norm(theirs, rows)).square().sum((1, 2))


def _over_norm(x: Tensor, rows: Rows) -> Tensor:
    if rows == 'none':
        return x
    if rows == 'l2':
        return unit(x)
    norm = x.abs().sum(2, keepdim=True)
    return x / norm.where(norm > 0, 1)


def _check(owner: str, settings: Settings) -> None:
    check_choice(owner, 'over', settings.over, Over)
    check_choice(owner, 'rows', settings.rows, Rows)
    check_choice(owner, 'reduction', settings.reduction, Reduction)
    check_choice(owner, 'values', settings.values, Values)
    check_temperature(settings.temperature)
    check_counts(owner, pool=settings.pool)
    windows = settings.windows
    whole = isinstance(windows, Sequence) and all(type(x) is int and x >= 1 for x in windows)
    if not (whole and len(windows) == 2):
        raise ValueError(f'{owner} expects windows as two numbers >= 1, got {windows!r}')
    if settings.over == 'images' and tuple(windows) != (1, 1):
        raise ValueError(f"{owner} cuts no windows over='images', got windows={tuple(windows)}")


class RelationLoss(DistillLoss):
    """Module form of [`relation_loss`][], times ``weight``: any row of its table.

    Args:
        weight: Factor on the result.
        over: See [`relation_loss`][], as the other arguments.

    Examples:
        >>> import torch
        >>> loss = RelationLoss(over='positions', rows='none', reduction='mean', values='unit')
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        weight: float = 1.0,
        over: Over = 'channels',
        rows: Rows = 'l2',
        reduction: Reduction = 'row',
        values: Values = 'plain',
        temperature: float = 1.0,
        pool: int = 1,
        windows: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__(weight)
        windows = tuple(windows) if isinstance(windows, Sequence) else windows
        self.settings = Settings(over, rows, reduction, values, temperature, pool, windows)
        _check(type(self).__name__, self.settings)
        self.any_channels = over != 'channels'
        self.least_images = 2 if over == 'images' else 1

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * relation_loss(student, teacher, *self.settings)


class ICKDLoss(RelationLoss):
    """Inter-channel correlation: [`relation_loss`][] as it stands, times ``weight``.

    The authors' weight is 2.5 for small pictures. Behind their 500 for ImageNet stands a second
    division by the number of images.

    Args:
        weight: Factor on the result.
        pool: See [`relation_loss`][].
        windows: See [`relation_loss`][]. The authors have up to 32x32 for segmentation.

    Examples:
        >>> import torch
        >>> loss = ICKDLoss(weight=2.5, windows=(4, 4))
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 16, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self, weight: float = 1.0, pool: int = 1, windows: Sequence[int] = (1, 1)
    ) -> None:
        super().__init__(weight, pool=pool, windows=windows)


class SPLoss(RelationLoss):
    """Similarity-preserving distillation: [`relation_loss`][] of images, times ``weight``.

    The authors' weight is 3000. The more images there are in a batch, that of all processes
    together, the more it says; of one it is 0.

    Args:
        weight: Factor on the result.
        rows: See [`relation_loss`][], as ``pool``. ``'l1'`` is what torchdistill's version does.

    Examples:
        >>> import torch
        >>> loss = SPLoss(weight=3000.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(self, weight: float = 1.0, rows: Rows = 'l2', pool: int = 1) -> None:
        super().__init__(weight, 'images', rows, 'mean', pool=pool)
