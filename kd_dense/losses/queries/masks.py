"""What Mask2Former and its kin predict: classes and masks of queries, paired with the teacher's.

The matching of DETRDistill (Chang et al., ICCV 2023, https://arxiv.org/abs/2211.10156) with the
costs and losses of Cheng et al., "Masked-attention Mask Transformer for Universal Image
Segmentation", CVPR 2022, https://arxiv.org/abs/2112.01527, to the teacher's masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32
from kd_dense.losses.base import check_counts
from kd_dense.losses.queries.classes import (
    QueryLoss,
    Unmatched,
    check_settings,
    class_costs,
    class_losses,
)
from kd_dense.losses.queries.matching import (
    Layer,
    layers_of,
    match,
    paired_layers,
    parts_of_pairs,
    take,
)

__all__ = ['QueryMaskLoss', 'match_masks', 'query_mask_loss']

PARTS = ('classes', 'mask', 'dice')
POINTS = 12544  # of 112x112, as Mask2Former draws


def query_mask_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    classes: float = 2.0,
    mask: float = 5.0,
    dice: float = 5.0,
    costs: tuple[float, float, float] = (2.0, 5.0, 5.0),
    points: int | None = POINTS,
    unmatched: Unmatched = 'background',
    sigmoid: bool = False,
) -> dict[str, Tensor]:
    r"""Pair the queries of both decoders, layer by layer, and compare classes and masks of pairs.

    Queries are paired as in [`kd_dense.losses.queries.boxes.query_box_loss`][]. With class logits
    $x_i$ and mask logits $z_{ip}$ of the student's query i, class probabilities $y_j$ and mask
    probabilities $m_{jp}$ of the teacher's query j, and $\hat z = \mathrm{sigmoid}(z)$, a pair
    costs

    $$
    c_1\, \mathrm{CE}(x_i, y_j) + c_2\, \underset{p}{\mathrm{mean}}\ \mathrm{BCE}(z_{ip}, m_{jp})
    + c_3 \Bigl(1 - \frac{2 \sum_p \hat z_{ip} m_{jp} + 1}
        {\sum_p \hat z_{ip} + \sum_p m_{jp} + 1}\Bigr)
    $$

    and the parts ``classes``, ``mask`` and ``dice`` are the sums of these three over the pairs of
    all layers, each with its weight, over the number of pairs of a layer in the batch (the mean
    over the processes of a training).

    Args:
        student: Class logits ``(N, Q, K)`` of each layer of the decoder, then mask logits
            ``(N, Q, H, W)`` of each.
        teacher: The same; masks of another size are resized. No gradient flows into it.
        classes: Factor on the part ``classes``.
        mask: Factor on ``mask``.
        dice: Factor on ``dice``.
        costs: $c_1, c_2, c_3$.
        points: Masks of more positions are compared at so many of them, which are drawn anew each
            time, the same ones for all queries. ``None`` takes all.
        unmatched: What queries are taught that have no partner, where the student has more than
            the teacher: ``'background'``, that there is nothing; or ``'ignored'``.
        sigmoid: Whether each class is taken for itself. Otherwise the logits are those of a
            softmax, with no object as the last class.

    Returns:
        The weighted parts ``classes``, ``mask`` and ``dice``: scalars, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.
        ImportError: If SciPy is not installed.

    Examples:
        >>> logits = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])
        >>> masks = torch.tensor([[[[20.0, -20.0]], [[-20.0, 20.0]]]])
        >>> same = query_mask_loss([logits, masks], [logits.flip(1), masks.flip(1)])
        >>> {name: round(part.item(), 3) for name, part in same.items()}
        {'classes': 0.0, 'mask': 0.0, 'dice': 0.0}
        >>> wrong = query_mask_loss([logits, masks], [logits, -masks], costs=(1.0, 0.0, 0.0))
        >>> {name: round(part.item(), 3) for name, part in wrong.items()}
        {'classes': 0.0, 'mask': 100.0, 'dice': 3.333}
    """
    weights = _check('query_mask_loss', (classes, mask, dice), costs, points, unmatched)
    ours, theirs = _layers('query_mask_loss', student, teacher, points)
    pairs = match(ours, theirs, partial(_costs, costs=costs, sigmoid=sigmoid))
    compare = partial(compare_masks, unmatched=unmatched, sigmoid=sigmoid)
    return parts_of_pairs(ours, theirs, pairs, compare, weights)


def match_masks(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    costs: tuple[float, float, float] = (2.0, 5.0, 5.0),
    points: int | None = POINTS,
    sigmoid: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """The pairs that [`query_mask_loss`][] compares, with its arguments.

    Returns:
        For each layer the paired queries of the student and of the teacher, ``(N, M)`` each.
    """
    layers = _layers('match_masks', student, teacher, points)
    return match(*layers, partial(_costs, costs=costs, sigmoid=sigmoid))


def _layers(
    owner: str, student: Sequence[Tensor], teacher: Sequence[Tensor], points: int | None
) -> tuple[list[Layer], list[Layer]]:
    """Layers that are compared, with masks ``(N, Q, P)``: logits of both at some positions."""
    ours, theirs = layers_of(owner, 'masks', student, teacher)
    size = ours[0].shapes.shape[2:]
    at = None
    if points is not None and size.numel() > points:
        at = torch.randint(size.numel(), (points,), device=ours[0].shapes.device)

    def at_points(layer: Layer) -> Layer:
        masks = layer.shapes
        if masks.shape[2:] != size:
            masks = F.interpolate(masks, size, mode='bilinear', align_corners=False)
        masks = masks.flatten(2)
        return layer._replace(shapes=at_least_float32(masks if at is None else masks[..., at]))

    return [at_points(x) for x in ours], [at_points(x) for x in paired_layers(ours, theirs)]


def _costs(ours: Layer, theirs: Layer, costs: tuple[float, float, float], sigmoid: bool) -> Tensor:
    """What pairs of a layer cost, ``(N, Q, M)``."""
    by_class, by_mask, by_dice = costs
    z, m = ours.shapes, theirs.shapes.sigmoid()
    cost = by_class * class_costs(ours.logits, theirs.logits, sigmoid)
    cost += by_mask * (F.softplus(z).mean(2, keepdim=True) - z @ m.mT / z.shape[2])
    z = z.sigmoid()
    sizes = z.sum(2, keepdim=True) + m.sum(2)[:, None]
    cost -= by_dice * (2 * (z @ m.mT) + 1) / (sizes + 1)
    return cost


def compare_masks(
    ours: Layer,
    theirs: Layer,
    students: Tensor,
    teachers: Tensor,
    unmatched: Unmatched,
    sigmoid: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of the loss of one layer, by queries and without weights.

    Args:
        ours: What the student predicts, masks ``(N, Q, P)``.
        theirs: What the teacher predicts, likewise.
        students: The paired queries of the student, ``(N, M)``.
        teachers: Those of the teacher, in the same order.
        unmatched: See [`query_mask_loss`][].
        sigmoid: As well.

    Returns:
        ``classes`` of all queries of the student, ``(N, Q)``, or of those that are paired, where
        others are ignored; ``mask`` and ``dice`` of the pairs, ``(N, M)``.
    """
    classes = class_losses(ours.logits, theirs.logits, students, teachers, unmatched, sigmoid)
    z, m = take(ours.shapes, students), take(theirs.shapes, teachers).sigmoid()
    apart = F.binary_cross_entropy_with_logits(z, m, reduction='none').mean(2)
    z = z.sigmoid()
    common = 2 * (z * m).sum(2) + 1
    return classes, apart, 1 - common / (z.sum(2) + m.sum(2) + 1)


def _check(
    owner: str,
    weights: Sequence[float],
    costs: Sequence[float],
    points: int | None,
    unmatched: str,
) -> dict[str, float]:
    if points is not None:
        check_counts(owner, points=points)
    if unmatched == 'code':
        raise ValueError(
            f"{owner} expects unmatched='background' or 'ignored', got 'code', which is of boxes"
        )
    return check_settings(owner, PARTS, weights, costs, unmatched)


class QueryMaskLoss(QueryLoss):
    """Module form of [`query_mask_loss`][], times ``weight``.

    Args:
        weight: Factor on all parts.
        classes: See [`query_mask_loss`][], as for those that follow.
    """

    parts = PARTS
    function = staticmethod(query_mask_loss)

    def __init__(
        self,
        weight: float = 1.0,
        classes: float = 2.0,
        mask: float = 5.0,
        dice: float = 5.0,
        costs: tuple[float, float, float] = (2.0, 5.0, 5.0),
        points: int | None = POINTS,
        unmatched: Unmatched = 'background',
        sigmoid: bool = False,
    ) -> None:
        weights = _check('QueryMaskLoss', (classes, mask, dice), costs, points, unmatched)
        others = dict(points=points, unmatched=unmatched, sigmoid=sigmoid)
        super().__init__(weight, **weights, costs=costs, **others)
