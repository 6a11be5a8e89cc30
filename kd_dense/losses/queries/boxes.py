"""What a DETR predicts: classes and boxes of its queries, paired with the teacher's.

Chang et al., "DETRDistill: A Universal Knowledge Distillation Framework for DETR-families",
ICCV 2023. https://arxiv.org/abs/2211.10156
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

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

__all__ = ['QueryBoxLoss', 'match_boxes', 'query_box_loss']

PARTS = ('classes', 'l1', 'giou')
# Least area that is divided by, of an image of area 1: 1e-6 pixels of one of 1000x1000.
LEAST_AREA = 1e-12


def query_box_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    classes: float = 1.0,
    l1: float = 5.0,
    giou: float = 2.0,
    costs: tuple[float, float, float] = (1.0, 5.0, 2.0),
    unmatched: Unmatched = 'background',
    sigmoid: bool = True,
) -> dict[str, Tensor]:
    r"""Pair the queries of both decoders, layer by layer, and compare what pairs predict.

    All queries of the teacher are paired, those that find nothing as well, one to one with those
    of the student: by $\sigma$, for which the sum of the costs is least. With class logits
    $x_i$ and boxes $b_i$ of the student's query i, and class probabilities $p_j$ and boxes
    $\hat b_j$ of the teacher's query j, clamped to the image, a pair costs

    $$
    c_1 \sum_k \mathrm{BCE}(x_{ik}, p_{jk}) + c_2 \lVert b_i - \hat b_j\rVert_1
    - c_3\, \mathrm{GIoU}(b_i, \hat b_j)
    $$

    and with M pairs in the batch the parts are, summed over the layers,

    $$
    \frac{w_\mathrm{classes}}{M} \sum_{i, k} \mathrm{BCE}(x_{ik}, p_{\sigma(i) k}), \quad
    \frac{w_\mathrm{l1}}{M} \sum_i \lVert b_i - \hat b_{\sigma(i)} \rVert_1, \quad
    \frac{w_\mathrm{giou}}{M} \sum_i \bigl(1 - \mathrm{GIoU}(b_i, \hat b_{\sigma(i)})\bigr)
    $$

    Layers are compared in order; of decoders of different depths the last with the last, and the
    others evenly spread. The numbers of queries may differ. M is the mean over the processes of
    a training.

    The host waits for the device once, to pair the queries (see
    [`kd_dense.losses.queries.matching.assign`][]).

    Args:
        student: Class logits ``(N, Q, K)`` of each layer of the decoder, then boxes
            ``(N, Q, 4)`` of each: cx, cy, w, h, as shares of the image.
        teacher: The same. No gradient flows into it.
        classes: Factor on the part ``classes``.
        l1: Factor on ``l1``.
        giou: Factor on ``giou``.
        costs: $c_1, c_2, c_3$.
        unmatched: What queries are taught that have no partner, where the student has more than
            the teacher: ``'background'``, that there is nothing; ``'ignored'``, nothing at all;
            or ``'code'``, what a slip in the authors' code makes of them: the number of
            classes is their target for every class.
        sigmoid: Whether each class is taken for itself. Otherwise the logits are those of a
            softmax, with no object as the last class, and its cross-entropy takes the place of
            the BCE.

    Returns:
        The weighted parts ``classes``, ``l1`` and ``giou``: scalars, at least float32.

    Raises:
        ValueError: If an argument or a shape is not as said here.
        ImportError: If SciPy is not installed.

    Examples:
        >>> logits = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])
        >>> boxes = torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.4, 0.4]]])
        >>> same = query_box_loss([logits, boxes], [logits.flip(1), boxes.flip(1)])
        >>> {name: round(part.item(), 3) for name, part in same.items()}
        {'classes': 0.002, 'l1': 0.0, 'giou': 0.0}
        >>> moved = query_box_loss([logits, boxes + 0.1], [logits, boxes])
        >>> {name: round(part.item(), 3) for name, part in moved.items()}
        {'classes': 0.002, 'l1': 2.0, 'giou': 1.537}
    """
    weights = check_settings('query_box_loss', PARTS, (classes, l1, giou), costs, unmatched)
    ours, theirs = layers_of('query_box_loss', 'boxes', student, teacher)
    theirs = paired_layers(ours, theirs)
    pairs = match(ours, theirs, partial(_costs, costs=costs, sigmoid=sigmoid))
    compare = partial(compare_layer, unmatched=unmatched, sigmoid=sigmoid)
    return parts_of_pairs(ours, theirs, pairs, compare, weights)


def match_boxes(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    costs: tuple[float, float, float] = (1.0, 5.0, 2.0),
    sigmoid: bool = True,
) -> list[tuple[Tensor, Tensor]]:
    """The pairs that [`query_box_loss`][] compares, with its arguments.

    Returns:
        For each layer the paired queries of the student and of the teacher, ``(N, M)`` each.
    """
    ours, theirs = layers_of('match_boxes', 'boxes', student, teacher)
    theirs = paired_layers(ours, theirs)
    return match(ours, theirs, partial(_costs, costs=costs, sigmoid=sigmoid))


def _costs(ours: Layer, theirs: Layer, costs: tuple[float, float, float], sigmoid: bool) -> Tensor:
    """What pairs of a layer cost, ``(N, Q, M)``."""
    by_class, by_l1, by_giou = costs
    boxes = clamped(theirs.shapes)
    cost = by_class * class_costs(ours.logits, theirs.logits, sigmoid)
    cost += by_l1 * torch.cdist(ours.shapes, boxes, p=1)
    cost -= by_giou * box_giou(ours.shapes[:, :, None], boxes[:, None])
    return cost


def compare_layer(
    ours: Layer,
    theirs: Layer,
    students: Tensor,
    teachers: Tensor,
    unmatched: Unmatched,
    sigmoid: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of the loss of one layer, by queries and without weights.

    Args:
        ours: What the student predicts.
        theirs: What the teacher predicts.
        students: The paired queries of the student, ``(N, M)``.
        teachers: Those of the teacher, in the same order.
        unmatched: See [`query_box_loss`][].
        sigmoid: As well.

    Returns:
        ``classes`` of all queries of the student, ``(N, Q)``, or of those that are paired, where
        others are ignored; ``l1`` and ``giou`` of the pairs, ``(N, M)``.
    """
    boxes = take(ours.shapes, students), take(clamped(theirs.shapes), teachers)
    classes = class_losses(ours.logits, theirs.logits, students, teachers, unmatched, sigmoid)
    return classes, (boxes[0] - boxes[1]).abs().sum(-1), 1 - box_giou(*boxes)


def corners(boxes: Tensor) -> Tensor:
    """From cx, cy, w, h to x1, y1, x2, y2.

    Examples:
        >>> corners(torch.tensor([0.5, 0.5, 0.5, 1.0]))
        tensor([0.2500, 0.0000, 0.7500, 1.0000])
    """
    centre, size = boxes.split(2, -1)
    half = size.clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)


def clamped(boxes: Tensor) -> Tensor:
    """Boxes, cx, cy, w, h, without what lies beyond the image.

    Examples:
        >>> clamped(torch.tensor([1.0, 0.5, 0.5, 1.0]))
        tensor([0.8750, 0.5000, 0.2500, 1.0000])
    """
    low, high = corners(boxes).clamp(0, 1).split(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


def box_giou(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU of boxes, cx, cy, w, h; of shapes ``(..., 4)`` that fit each other.

    ``eps`` is added to the areas that are divided by.

    Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.

    Examples:
        >>> box = torch.tensor([0.25, 0.5, 0.5, 1.0])
        >>> box_giou(box, torch.stack([box, torch.tensor([0.75, 0.5, 0.5, 1.0])]))
        tensor([1., 0.])
    """
    a, b = corners(first), corners(second)
    common = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    hull = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
    inner, outer = common[..., 0] * common[..., 1], hull[..., 0] * hull[..., 1]
    areas = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    union = (sum(areas, -inner)).clamp(min=LEAST_AREA)
    return inner / (union + eps) - (outer - union) / (outer.clamp(min=LEAST_AREA) + eps)


class QueryBoxLoss(QueryLoss):
    """Module form of [`query_box_loss`][], times ``weight``.

    Args:
        weight: Factor on all parts.
        classes: See [`query_box_loss`][], as for those that follow.
    """

    parts = PARTS
    function = staticmethod(query_box_loss)

    def __init__(
        self,
        weight: float = 1.0,
        classes: float = 1.0,
        l1: float = 5.0,
        giou: float = 2.0,
        costs: tuple[float, float, float] = (1.0, 5.0, 2.0),
        unmatched: Unmatched = 'background',
        sigmoid: bool = True,
    ) -> None:
        weights = check_settings('QueryBoxLoss', PARTS, (classes, l1, giou), costs, unmatched)
        super().__init__(weight, **weights, costs=costs, unmatched=unmatched, sigmoid=sigmoid)
