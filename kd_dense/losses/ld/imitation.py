"""Feature imitation in the regions that localization distillation (LD) was compared with.

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022.
https://arxiv.org/abs/2102.12252
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kd_dense.functional import at_least_float32, check_choice, in_blocks
from kd_dense.losses.base import DistillLoss, check_same_shape, check_weights
from kd_dense.losses.ld.head_targets import HeadTargets
from kd_dense.losses.ld.ld import by_prior, check_maps, level_means
from kd_dense.losses.ld.regions import (
    centers,
    fine_grained_region,
    inside_region,
    non_maximum_suppression,
)

__all__ = ['LDImitationLoss', 'general_instances', 'imitation_loss']

Region = Literal['main', 'inside', 'finegrained', 'gibox', 'all', 'decoupled']


def imitation_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    regions: Sequence[Tensor],
    background_weight: float = 0.0,
) -> Tensor:
    r"""Mean squared difference of features over the positions of a region, summed over levels.

    $$
    \sum_\mathrm{levels} \biggl(
        \frac{1}{|R| C} \sum_{i \in R} \lVert s_i - t_i \rVert^2
        + \frac{w}{|\bar R| C} \sum_{i \notin R} \lVert s_i - t_i \rVert^2 \biggr)
    $$

    with the positions $\bar R$ of a level outside the region $R$. A mean over no position is 0.

    Args:
        student: One map ``(N, C, H, W)`` for each level, any float dtype.
        teacher: Same shapes. No gradient flows into it.
        regions: Members of each level, ``(N, H * W * K)``, bool: a position belongs to the
            region if one of its K anchors does.
        background_weight: $w$. The authors' code has 2 in ``decouple``, else 0.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> student = torch.zeros(1, 2, 1, 2)
        >>> teacher = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> imitation_loss([student], [teacher], [torch.tensor([[True, False]])])
        tensor(5.)
        >>> imitation_loss([student], [teacher], [torch.tensor([[True, False]])], 2.0)
        tensor(25.)
    """
    return _losses_of_levels(student, teacher, regions, background_weight).sum()


def _losses_of_levels(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    regions: Sequence[Tensor],
    background_weight: float,
) -> Tensor:
    """What each level adds to [`imitation_loss`][], ``(L,)``."""
    if not len(student) == len(teacher) == len(regions):
        raise ValueError(
            f'imitation_loss expects as many maps as levels of the head, got {len(student)} of '
            f'the student, {len(teacher)} of the teacher and {len(regions)} levels'
        )
    differences, members = [], []
    for s, t, region in zip(student, teacher, regions, strict=True):
        check_same_shape('imitation_loss', s, t)
        positions = s.shape[2] * s.shape[3]
        if region.shape[0] != s.shape[0] or region.shape[1] % positions:
            raise ValueError(
                'imitation_loss expects the maps that the head is given: a region of priors '
                f'{tuple(region.shape)} does not fit the map {tuple(s.shape)}'
            )
        difference = at_least_float32(s) - at_least_float32(t.detach())
        differences.append(difference.square().mean(1).flatten(1))
        members.append(region.unflatten(1, (positions, -1)).any(2))
    sizes = [member.shape[1] for member in members]
    squares, inside = torch.cat(differences, 1), torch.cat(members, 1)
    losses = level_means(squares, inside, sizes)
    if background_weight > 0:
        losses = losses + background_weight * level_means(squares, ~inside, sizes)
    return losses


@torch.no_grad()
def general_instances(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_targets: HeadTargets,
    mix_images: bool = False,
) -> list[Tensor]:
    """Where student and teacher disagree most about the classes.

    The score of a prior is the largest difference of its class scores in the two models, its
    box that of the model whose score is higher there. Of the boxes of a level, the 10 of
    largest score are kept that do not overlap one another by an IoU above 0.3.

    Args:
        student: Class logits of all levels, then box distributions: see
            [`kd_dense.losses.ld.ld.ld_loss`][].
        teacher: Same shapes.
        head_targets: What the student's head computed for its own loss.
        mix_images: Keep 10 of each level of the batch, not of each image.

    Returns:
        The priors that are kept, ``(N, A)`` for each level, bool.

    Raises:
        ValueError: If the shapes are not as said here, or boxes are rotated.

    Examples:
        >>> targets = HeadTargets(
        ...     priors=[torch.tensor([[0.0, 0.0], [4.0, 0.0], [80.0, 0.0]])],
        ...     labels=[torch.tensor([[1, 1, 1]])],
        ...     label_weights=[torch.ones(1, 3)],
        ...     valid=[torch.ones(1, 3, dtype=torch.bool)],
        ...     boxes=[torch.zeros(0, 4)],
        ...     num_classes=1,
        ...     strides=[32],
        ... )
        >>> maps = [torch.tensor([[[[0.0, 3.0, 1.0]]]]), torch.zeros(1, 4 * 3, 1, 3)]
        >>> general_instances(maps, [0 * x for x in maps], targets)
        [tensor([[False,  True,  True]])]
    """
    if head_targets.rotated is not None:
        raise ValueError(
            'general instances are chosen by the overlap of upright boxes, and these are rotated: '
            "take another region, as 'finegrained'"
        )
    kept = []
    levels = len(head_targets.priors)
    for level, anchors in enumerate(check_maps(student, teacher, head_targets)):
        difference, sides = [], []
        for block in _blocks(*(x[i] for i in (level, levels + level) for x in (student, teacher))):
            ours, theirs = (x.unflatten(1, (anchors, -1)).sigmoid() for x in block[:2])
            theirs.sub_(ours)
            above, below = theirs.amax(2), -theirs.amin(2)
            difference.append(above.maximum(below))
            ours, theirs = (x.unflatten(1, (anchors, 4, -1)) for x in block[2:])
            surer = torch.where((above >= below)[:, :, None, None], theirs, ours)
            sides.append(_expected(surer, head_targets.strides[level]))
        scores = by_prior(torch.cat(difference, 2)).masked_fill_(~head_targets.valid[level], -1)
        left, top, right, bottom = (by_prior(torch.cat(x, 2)) for x in zip(*sides, strict=True))
        x, y = centers(head_targets.priors[level]).unbind(1)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], -1)
        shape = scores.shape
        if mix_images:
            boxes, scores = boxes.flatten(0, 1)[None], scores.flatten()[None]
        kept.append(non_maximum_suppression(scores, boxes, 10, 0.3).view(shape))
    return kept


def _blocks(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks ``(N, C, P)`` of positions of maps, at least float32."""
    widest = max(x.shape[1] for x in maps)
    width = len(maps[0]) * widest
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    for block in in_blocks(*(x.flatten(2) for x in maps), dim=2, width=width, dtype=dtype):
        yield tuple(at_least_float32(x) for x in block)


def _expected(distributions: Tensor, stride: float) -> tuple[Tensor, ...]:
    """Distances of the four sides in pixels, ``(N, K, P)`` each, of ``(N, K, 4, n + 1, P)``."""
    bins = distributions.softmax(3)
    index = torch.arange(bins.shape[3], dtype=bins.dtype, device=bins.device)
    return bins.mul_(index[:, None]).sum(3).mul_(stride).unbind(2)


class LDImitationLoss(DistillLoss):
    """Feature imitation in one of the regions that the paper compares; its tap is the neck.

    | ``region`` | positions of | the authors' |
    |-|-|-|
    | ``main`` | the positives | |
    | ``inside`` | the priors with their centre in a box | ``fitnet``, as their code is |
    | ``finegrained`` | the anchors that overlap a box more than half as well as its best | same |
    | ``gibox`` | the general instances | same |
    | ``all`` | the whole maps (FitNets) | ``fitnet``, as their README has it |
    | ``decoupled`` | ``inside``, and the rest, a mean of each (DeFeat) | ``decouple``, as meant |

    General instances are where the class scores of student and teacher differ most: at most 10
    of each level of an image, whose boxes (of the model that is surer) do not overlap by an IoU
    above 0.3. ``all`` and ``decoupled`` count positions in the padding too.

    The authors' ``decouple`` compares the student's background with the teacher's objects, which
    are not as many, and cannot run. This is what was meant: background with background.

    The authors' weights for GFL are 2 for a ResNet-50 student and 0.2 for a ResNet-18.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
    Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021.
    Dai et al., "General Instance Distillation for Object Detection", CVPR 2021.

    Args:
        weight: Factor on [`imitation_loss`][].
        region: See the table.
        positive_levels_only: Leave out levels without a positive in the batch, whatever the
            region, as the authors' code does.
        mix_images: Choose the general instances of all images of a batch together, where boxes
            of different images suppress each other, as the authors' code does.
        background_weight: Factor on the rest with ``region='decoupled'``, else without effect.

    Raises:
        ValueError: If there is no such region, or a weight is negative or not finite.

    Examples:
        >>> LDImitationLoss(weight=2.0, region='gibox').needs
        ('head_targets', 'head_outputs')
    """

    all_maps = True

    def __init__(
        self,
        weight: float = 1.0,
        region: Region = 'gibox',
        positive_levels_only: bool = False,
        mix_images: bool = False,
        background_weight: float = 2.0,
    ) -> None:
        super().__init__(weight)
        check_choice('LDImitationLoss', 'region', region, Region)
        check_weights('LDImitationLoss', background_weight=background_weight)
        self.region: Region = region
        self.background_weight = background_weight if region == 'decoupled' else 0.0
        self.positive_levels_only = positive_levels_only
        self.mix_images = mix_images
        self.needs = ('head_targets', 'head_outputs') if region == 'gibox' else ('head_targets',)

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        head_targets: HeadTargets,
        head_outputs: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> Tensor:
        regions = self.regions(head_targets, head_outputs)
        losses = _losses_of_levels(student, teacher, regions, self.background_weight)
        if self.positive_levels_only:
            losses = losses * head_targets.positive_levels
        return self.weight * losses.sum()

    def regions(
        self,
        head_targets: HeadTargets,
        head_outputs: tuple[Sequence[Tensor], Sequence[Tensor]] | None,
    ) -> list[Tensor]:
        """The members of each level, ``(N, A)``, bool; of the decoupled region, the objects."""
        if self.region == 'gibox':
            if head_outputs is None:
                raise TypeError("LDImitationLoss with region='gibox' expects head_outputs")
            return general_instances(*head_outputs, head_targets, self.mix_images)
        priors, boxes = head_targets.priors, head_targets.boxes
        valid = torch.cat(head_targets.valid, 1)
        if self.region == 'all':
            region = torch.ones_like(valid)
        elif self.region == 'main':
            region = head_targets.positive
        elif self.region == 'finegrained':
            region = fine_grained_region(priors, valid, boxes)
        else:
            region = inside_region(priors, valid, boxes)
        return list(region.split(head_targets.sizes, 1))
