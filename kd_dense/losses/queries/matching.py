"""Pair the queries of two decoders, layer by layer, one to one and at the least cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32, mean_over_ranks
from kd_dense.losses.base import MMDET_EPS

__all__ = [
    'Layer',
    'assign',
    'layers_of',
    'match',
    'matched_count',
    'paired_layers',
    'parts_of_pairs',
    'take',
]

# That pair the queries of several layers and images at once.
THREADS = 8


class Layer(NamedTuple):
    """What one layer of a decoder predicts; all but masks is at least float32.

    Attributes:
        logits: Class logits, ``(N, Q, K)``.
        shapes: Boxes ``(N, Q, 4)``, or mask logits ``(N, Q, H, W)``.
    """

    logits: Tensor
    shapes: Tensor


def layers_of(
    owner: str, what: str, student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> tuple[list[Layer], list[Layer]]:
    """Check what two decoders predict, and sort it by layers; the teacher is detached.

    Args:
        owner: Whose arguments these are.
        what: ``'boxes'`` or ``'masks'``.
        student: Class logits of each layer, then boxes or masks of each.
        teacher: The same, with any number of layers and queries.

    Raises:
        ValueError: If one of the lists is not of that form, or the numbers of images or of
            classes differ.
    """
    dims = {'boxes': 3, 'masks': 4}[what]
    for whose, maps in (('student', student), ('teacher', teacher)):
        layers = len(maps) // 2
        logits, shapes = maps[:layers], maps[layers:]
        right = (
            layers
            and len(shapes) == layers
            and all(x.dim() == 3 for x in logits)
            and all(y.dim() == dims and y.shape[:2] == logits[0].shape[:2] for y in shapes)
            and (what == 'masks' or all(y.shape[-1] == 4 for y in shapes))
            and len({x.shape for x in logits}) == 1
        )
        if not right:
            last = '4' if what == 'boxes' else 'H, W'
            raise ValueError(
                f'{owner} expects of the {whose}, for each layer of a decoder, class logits '
                f'(N, Q, K), then {what} (N, Q, {last}), got {[tuple(x.shape) for x in maps]}: '
                f'tap a head that predicts classes and {what} of queries'
            )
    ours, theirs = student[0].shape, teacher[0].shape
    if ours[0] != theirs[0] or ours[2] != theirs[2]:
        raise ValueError(
            f'{owner} expects as many images and classes of student and teacher, got class logits '
            f'{tuple(ours)} and {tuple(theirs)}: take a teacher with the same classes and, as a '
            'softmax has one more for no object, of the same kind of head'
        )

    few = what == 'boxes'  # not as many as of masks, of which some positions do

    def sorted_by_layers(maps: Sequence[Tensor]) -> list[Layer]:
        half = len(maps) // 2
        pairs = zip(maps[:half], maps[half:], strict=True)
        return [Layer(at_least_float32(x), at_least_float32(y) if few else y) for x, y in pairs]

    return sorted_by_layers(student), sorted_by_layers([x.detach() for x in teacher])


def paired_layers(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[Layer]:
    """The layer of the teacher for each of the student: the last for the last, evenly spread.

    Examples:
        >>> six, three = ([Layer(torch.tensor(i), None) for i in range(n)] for n in (6, 3))
        >>> [int(layer.logits) for layer in paired_layers(three, six)]
        [1, 3, 5]
        >>> [int(layer.logits) for layer in paired_layers(six, three)]
        [0, 0, 1, 1, 2, 2]
    """
    ours, theirs = len(student), len(teacher)
    return [teacher[-(-(i + 1) * theirs // ours) - 1] for i in range(ours)]


@torch.no_grad()
def match(
    student: Sequence[Layer], teacher: Sequence[Layer], costs: Callable[[Layer, Layer], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Pair the queries of two decoders.

    Args:
        student: Layers.
        teacher: As many.
        costs: What pairs of a layer cost, ``(N, Q, M)``.

    Returns:
        As of [`assign`][].
    """
    return assign([costs(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)])


@torch.no_grad()
def assign(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair queries so that the sum of the costs is least, for each layer and image.

    This is the Hungarian matching of DETR, by SciPy's ``linear_sum_assignment`` on the host, as
    in mmdet. The host waits for the device once, for all layers and images together.

    Args:
        costs: For each layer ``(N, Q, M)``: of pairing each query of the student with each of
            the teacher.

    Returns:
        For each layer the paired queries of the student and of the teacher, ``(N, min(Q, M))``
        each, in the order of the student's queries.

    Raises:
        ImportError: If SciPy is not installed.

    Examples:
        >>> assign([torch.tensor([[[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]]])])
        [(tensor([[0, 1]]), tensor([[1, 0]]))]
    """
    # What is not a number is reported where the losses are, not by SciPy.
    found = solve(torch.stack([*costs]).nan_to_num())
    return [(found[0, i], found[1, i]) for i in range(len(costs))]


def solve(costs: Tensor) -> Tensor:
    """Solve many problems of assignment on the host: ``(L, N, Q, M)`` to ``(2, L, N, K)``."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError(
            'pairing queries needs SciPy, which mmdet needs as well: pip install scipy'
        ) from None
    problems = costs.flatten(0, 1).cpu().numpy()  # the one wait
    with ThreadPoolExecutor(min(len(problems), THREADS)) as pool:  # SciPy lets others run
        pairs = [*pool.map(linear_sum_assignment, problems)]
    found = torch.tensor([[side.tolist() for side in pair] for pair in pairs]).view(
        *costs.shape[:2], 2, -1
    )
    return found.permute(2, 0, 1, 3).to(costs.device, non_blocking=True)


def take(x: Tensor, queries: Tensor) -> Tensor:
    """Some queries of each image.

    Args:
        x: ``(N, Q, ...)``.
        queries: Which, ``(N, M)``.

    Examples:
        >>> take(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]]))
        tensor([[[2.]],
        <BLANKLINE>
                [[3.]]])
    """
    index = queries.view(*queries.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)


def matched_count(queries: Tensor, like: Tensor) -> Tensor:
    """How many queries of the batch are paired, in the mean over processes; and an epsilon.

    Args:
        queries: Those of a layer, ``(N, M)``.
        like: Tells dtype and device.
    """
    return mean_over_ranks(like.new_full((), queries.numel())) + MMDET_EPS


def parts_of_pairs(
    student: Sequence[Layer],
    teacher: Sequence[Layer],
    pairs: Sequence[tuple[Tensor, Tensor]],
    compare: Callable[[Layer, Layer, Tensor, Tensor], Sequence[Tensor]],
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The weighted parts of a loss: sums over all layers, over the number of pairs of one.

    Args:
        student: Layers.
        teacher: As many.
        pairs: The paired queries of each layer.
        compare: What the queries of a layer add to each part.
        weights: Of the parts, in the order of what ``compare`` returns.
    """
    found = [
        compare(ours, theirs, *pair)
        for ours, theirs, pair in zip(student, teacher, pairs, strict=True)
    ]
    sums = [torch.stack([x.sum() for x in part]).sum() for part in zip(*found, strict=True)]
    count = matched_count(pairs[0][0], sums[0])
    return {n: w * x / count for (n, w), x in zip(weights.items(), sums, strict=True)}
