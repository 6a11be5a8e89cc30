"""Features, weighed by what the queries of the teacher's decoder look at.

The target-aware part of Chang et al., "DETRDistill: A Universal Knowledge Distillation Framework
for DETR-families", ICCV 2023. https://arxiv.org/abs/2211.10156
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32
from kd_dense.losses.base import DistillLoss, check_same_shape
from kd_dense.losses.ld.regions import box_iou, pad_boxes
from kd_dense.losses.queries.boxes import corners

__all__ = [
    'QueryFeatureLoss',
    'TaughtQueries',
    'query_feature_loss',
    'query_masks',
    'rate_queries',
]

LEAST = 0.01  # of a mask, before its largest value becomes 1


class TaughtQueries(NamedTuple):
    """Queries of the teacher's decoder, behind each of its layers.

    Attributes:
        states: What they have become, ``(N, M, C)``.
        quality: How good their predictions are, 0 to 1, ``(N, M)``.
    """

    states: list[Tensor]
    quality: list[Tensor]


@torch.no_grad()
def rate_queries(
    states: Sequence[Tensor],
    logits: Sequence[Tensor],
    boxes: Sequence[Tensor],
    objects: list[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    count: int = 100,
    sigmoid: bool = True,
) -> TaughtQueries:
    """Choose the teacher's surest predictions, and rate their queries.

    The quality is the class probability, times the best IoU of the box with an object where the
    image has one. A query that is sure of several classes is chosen several times.

    Args:
        states: Queries behind each layer of the decoder, ``(N, Q, C)``.
        logits: Class logits of each layer, ``(N, Q, K)``.
        boxes: Boxes of each, ``(N, Q, 4)``: cx, cy, w, h, as shares of the image.
        objects: Of each image the boxes of its objects, ``(n, 4)``: x1, y1, x2, y2 in pixels.
        image_shapes: Of each image height and width in pixels, without padding.
        count: How many predictions are chosen at most.
        sigmoid: Whether each class is taken for itself. Otherwise the logits are those of a
            softmax, with no object as the last class.

    Examples:
        >>> found = rate_queries(
        ...     states=[torch.ones(1, 2, 3)],
        ...     logits=[torch.tensor([[[0.0], [9.0]]])],
        ...     boxes=[torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]]])],
        ...     objects=[torch.tensor([[0.0, 0.0, 8.0, 6.0]])],
        ...     image_shapes=[(6, 8)],
        ... )
        >>> found.quality
        [tensor([[0.4999, 0.5000]])]
    """
    sizes = torch.tensor([[w, h, w, h] for h, w in image_shapes], dtype=torch.float32)
    sizes = sizes.to(boxes[0].device, non_blocking=True)[:, None]
    some = torch.tensor([len(x) > 0 for x in objects]).to(boxes[0].device, non_blocking=True)
    padded = pad_boxes([at_least_float32(x) for x in objects])
    chosen, quality = [], []
    for state, x, box in zip(states, logits, boxes, strict=True):
        x, box = at_least_float32(x), at_least_float32(box)
        classes = x.sigmoid() if sigmoid else x.softmax(-1)[..., :-1]
        rated, index = classes.flatten(1).topk(min(count, classes[0].numel()))
        index = index // classes.shape[2]
        if padded.shape[1]:
            overlap = box_iou((corners(box) * sizes)[:, None], padded).nan_to_num().amax(1)
            rated = rated * torch.where(some[:, None], overlap.gather(1, index), 1)
        chosen.append(state.gather(1, index[..., None].expand(-1, -1, state.shape[2])))
        quality.append(rated)
    return TaughtQueries(chosen, quality)


@torch.no_grad()
def query_masks(teacher: Tensor, taught_queries: TaughtQueries) -> list[Tensor]:
    """Where the queries behind each layer look at a map of the teacher.

    Args:
        teacher: ``(N, C, H, W)``.
        taught_queries: Its queries.

    Returns:
        For each layer ``(N, 1, H, W)``, of which the largest of each image is 1.

    Raises:
        ValueError: If the queries are not as wide as the map.

    Examples:
        >>> maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> query_masks(maps, TaughtQueries([torch.tensor([[[2.0, 0.0]]])], [torch.ones(1, 1)]))
        [tensor([[[[1.0000, 0.0100]]]])]
    """
    masks = []
    unit = F.normalize(at_least_float32(teacher), dim=1)
    for states, quality in zip(*taught_queries, strict=True):
        if states.shape[-1] != teacher.shape[1]:
            raise ValueError(
                'query_masks expects queries as wide as the map of the teacher, got '
                f'{tuple(states.shape)} and {tuple(teacher.shape)}: tap its neck, which feeds the '
                'decoder'
            )
        # The sum over the queries of their cosines, each with its weight.
        sums = (F.normalize(states.to(unit), dim=-1) * quality.to(unit)[..., None]).sum(1)
        mask = (unit * sums[..., None, None]).sum(1, keepdim=True).clamp(min=LEAST)
        masks.append(mask / mask.amax((1, 2, 3), keepdim=True))
    return masks


def query_feature_loss(student: Tensor, teacher: Tensor, taught_queries: TaughtQueries) -> Tensor:
    r"""Compare features, the more the better the teacher's queries are that look at them.

    With the queries $q_{lm}$ behind layer l of the teacher's decoder and their quality $w_{lm}$,
    the mask of a layer is, at position p,

    $$
    \mu_{lp} = \max\Bigl(\sum_m w_{lm}
        \frac{q_{lm}^\top t_p}{\lVert q_{lm}\rVert\,\lVert t_p\rVert},\ 0.01\Bigr),
    $$

    over its largest value in the image, and the loss

    $$
    \frac{1}{N C H W} \sum_l \sum_{n, c, p} \mu_{lnp}^2 (s_{ncp} - t_{ncp})^2
    $$

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        taught_queries: Queries of the teacher, as [`rate_queries`][] has them.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes differ, or the queries are not as wide as the teacher's map.

    Examples:
        >>> maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> queries = TaughtQueries([torch.tensor([[[2.0, 0.0]]])], [torch.ones(1, 1)])
        >>> query_feature_loss(torch.zeros(1, 2, 1, 2), maps, queries)
        tensor(0.2500)
    """
    check_same_shape('query_feature_loss', student, teacher)
    teacher = at_least_float32(teacher.detach())
    difference = at_least_float32(student) - teacher
    weight = torch.stack(query_masks(teacher, taught_queries)).square().sum(0)
    return (weight * difference.square().mean(1, keepdim=True)).mean()


class QueryFeatureLoss(DistillLoss):
    """Module form of [`query_feature_loss`][], times ``weight``."""

    needs = ('taught_queries',)

    def forward(self, student: Tensor, teacher: Tensor, taught_queries: TaughtQueries) -> Tensor:
        return self.weight * query_feature_loss(student, teacher, taught_queries)
