"""Where a teacher's dense head predicts objects well.

Yang et al., "Prediction-Guided Distillation for Dense Object Detection", ECCV 2022.
https://arxiv.org/abs/2203.05469
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_dense.functional import in_blocks
from kd_dense.losses.ld.regions import centers, inside_region, pad_boxes
from kd_dense.losses.predictions.boxes import HeadBoxes, overlap, rows_of_priors

__all__ = ['KeyRegions', 'key_regions']


class KeyRegions(NamedTuple):
    """Where the teacher's predictions of objects are good, and where no object is.

    Attributes:
        weights: 0 to 1, ``(N, H, W)`` of each level.
        background: 1 where no object is, else 0, ``(N, H, W)`` of each level.
    """

    weights: list[Tensor]
    background: list[Tensor]


@torch.no_grad()
def key_regions(
    teacher: Sequence[Tensor],
    head_boxes: HeadBoxes,
    boxes: list[Tensor],
    labels: list[Tensor],
    trust: float = 0.8,
    topk: int = 30,
    jitter: float = 0.05,
    noise: Tensor | None = None,
) -> KeyRegions:
    r"""Find for each object where the teacher predicts it best.

    The quality of a prior i for an object is $p_i^{1 - \xi}\,\mathrm{IoU}_i^\xi$, with the
    probability p that the teacher gives the object's class there and the IoU of its box with the
    object. The ``topk`` best priors of all levels are samples of a Gaussian: with mean and
    covariance of their centres, which are moved a little at random so that they do not lie on a
    line, a prior weighs $e^{-d^2 / 2}$ at a Mahalanobis distance of d, and nothing outside of the
    object. Of several objects, and of several anchors of a position, the largest weight counts.

    Args:
        teacher: What the teacher's head yields, L levels: L maps of class logits, L of boxes.
        head_boxes: What makes boxes of the maps.
        boxes: Ground truth of each image, ``(n, 4)``: x1, y1, x2, y2 in pixels; n may be 0.
        labels: Its classes, ``(n,)``.
        trust: $\xi$, 0 to 1: how much the box counts against the class.
        topk: How many priors of an object.
        jitter: How far centres are moved at most, in pixels.
        noise: How each of them is, in place of random numbers: ``(N, G, topk, 2)``, 0 to 1, where
            G is the largest n.

    Examples:
        >>> from kd_dense.losses.predictions.boxes import Decoded, decode_distances
        >>> points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0]])
        >>> def decode(maps):
        ...     return Decoded([points], [decode_distances(points, maps[0].flatten(2).mT)])
        >>> outputs = [torch.zeros(1, 1, 1, 3), torch.full((1, 4, 1, 3), 4.0)]
        >>> objects, classes = [torch.tensor([[0.0, 0.0, 16.0, 8.0]])], [torch.tensor([0])]
        >>> found = key_regions(
        ...     outputs, HeadBoxes(decode, decode), objects, classes, topk=2, jitter=0.0
        ... )
        >>> found.weights[0], found.background[0]
        (tensor([[[1., 1., 0.]]]), tensor([[[0., 0., 1.]]]))
    """
    levels = len(teacher) // 2
    decoded = head_boxes.teacher(teacher[levels : 2 * levels])
    levels = len(decoded.priors)
    shapes = [x.shape[-2:] for x in teacher[:levels]]
    anchors = [len(p) // s.numel() for p, s in zip(decoded.priors, shapes, strict=True)]
    rows = [rows_of_priors(m, k) for m, k in zip(teacher, anchors, strict=False)]
    scores = torch.cat(rows, 1).sigmoid().mT  # (N, C, A)
    found = torch.cat(decoded.boxes, 1)
    middle = centers(torch.cat(decoded.priors))
    count = min(topk, len(middle))
    objects = pad_boxes(boxes).to(found.dtype)
    classes = pad_sequence(labels, batch_first=True)
    images, most = classes.shape
    if noise is None:
        noise = torch.rand(images, most, count, 2, device=middle.device, dtype=middle.dtype)
    weights = torch.zeros_like(found[..., 0])
    width = images * len(middle)
    for some, kinds, moves in _blocks(objects, classes, noise, width=width, dtype=found.dtype):
        likely = scores.gather(1, kinds[..., None].expand(-1, -1, len(middle)))
        fit = overlap(found[:, None], some[:, :, None]).iou
        best = (likely.pow(1 - trust) * fit.pow(trust)).topk(count, -1).indices
        samples = middle[best]  # (N, G, topk, 2)
        near = _gaussian(samples, samples + (moves - 0.5) * (2 * jitter))
        low, high = samples - some[:, :, None, :2], some[:, :, None, 2:] - samples
        near = near * (torch.minimum(low, high).amin(-1) > 0)
        weights.scatter_reduce_(1, best.flatten(1), near.flatten(1), 'amax')
    everywhere = torch.ones_like(weights, dtype=torch.bool)
    outside = ~inside_region(decoded.priors, everywhere, boxes)
    sizes = [len(p) for p in decoded.priors]

    def maps(x: Tensor) -> list[Tensor]:
        split = zip(x.to(weights.dtype).split(sizes, 1), shapes, strict=True)
        return [one.unflatten(1, (*shape, -1)).amax(-1) for one, shape in split]

    return KeyRegions(maps(weights), maps(outside))


def _blocks(*tensors: Tensor, width: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """Some of the objects of each image at a time."""
    if tensors[0].shape[1]:
        yield from in_blocks(*tensors, dim=1, width=width, dtype=dtype)


def _gaussian(samples: Tensor, moved: Tensor) -> Tensor:
    """How near samples ``(..., k, 2)`` are to the middle of others, by their covariance."""
    mean = moved.mean(-2, keepdim=True)
    x, y = (moved - mean).unbind(-1)
    xx, yy, xy = (one.mean(-1, keepdim=True) for one in (x * x, y * y, x * y))
    x, y = (samples - mean).unbind(-1)
    square = yy * x * x + xx * y * y - 2 * xy * x * y
    # Of samples on a line, rounding makes either less than nothing.
    square = square.clamp(min=0) / ((xx * yy - xy * xy).clamp(min=0) + 1e-10)
    return (-square / 2).exp()
